"""Stage `index`: data set folders → one row per pair in `paths.index`, with the sha256 of the clean image.

    python -m pipeline.index            # as params.yaml says
    python -m pipeline.index --check    # a table per data set and what to fix; writes nothing but the hash cache

Broken, missing, mis-sized and unpaired files are rows with a status; they are counted, and the stage fails above
`index.max_bad_fraction`. Hashes are remembered by (path, size, mtime): an unchanged file is read once.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from pipeline.index_config import IndexConfig
from pipeline.index_pairs import Candidate, candidates
from pipeline.index_probe import Probe, ProbeCache, probe_all, write_table
from student.config import ParamsError, Paths, add_params_arguments, load_section, read_params

_TEXT = "dataset domain task split gt_path lq_path degradation gt_sha256".split()
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXT]
    + [("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string())]
    + [("status", pa.string()), ("error", pa.string())]
)
"""Columns of the index. `lq_path` is null, and `degradation` a JSON object, where gt is degraded on the fly."""

SAVE_SECONDS = 30.0


def index_rows(config: IndexConfig, cache: ProbeCache, tick=lambda done, total: None) -> Iterator[dict]:
    """Rows of the index, in the order of `config` and then of the paths.

    tick(done, total) is called for every candidate. Raises `ParamsError` for folders and lists that do not exist.
    """
    root = Path(config.root)
    if not root.is_dir():
        raise ParamsError(f"index.root = {root}: no such folder; point it at your data, e.g. --set index.root=/data")
    # All folders are listed before the first file is read, so that a wrong name fails at the door.
    found = [
        (dataset, split, list(candidates(root, dataset, split)))
        for dataset in config.datasets
        for split in dataset.splits
    ]
    total, done, saved = sum(len(pairs) for *_, pairs in found), 0, time.monotonic()
    for dataset, split, pairs in found:
        spec = dataset.splits[split]
        fixed = {"dataset": dataset.name, "domain": dataset.domain, "task": dataset.task, "split": split}
        fixed["degradation"] = spec.degradation and spec.degradation.model_dump_json()
        probes = probe_all(
            (path for pair in pairs for path in (pair.gt, pair.lq) if path and pair.status == "ok"),
            cache, config.workers, config.max_pixels,
        )  # fmt: skip
        for pair in pairs:
            yield fixed | _row(pair, *_take(pair, probes))
            done += 1
            tick(done, total)
            if time.monotonic() - saved > SAVE_SECONDS:
                cache.save()
                saved = time.monotonic()
    cache.save()


def _take(pair: Candidate, probes: Iterator[Probe]) -> list[Probe]:
    return list(islice(probes, (pair.lq is not None) + 1)) if pair.status == "ok" else []


def _row(pair: Candidate, gt: Probe | None = None, lq: Probe | None = None) -> dict:
    row = dict.fromkeys(("gt_sha256", "width", "height", "mode"))
    row |= {"gt_path": pair.gt, "lq_path": pair.lq, "status": pair.status, "error": pair.error}
    if gt is None:
        return row
    row |= {"gt_sha256": gt.sha256, "width": gt.width or None, "height": gt.height or None, "mode": gt.mode or None}
    if error := gt.error or (lq and lq.error):
        return row | {"status": "unreadable", "error": error}
    if lq and (lq.width, lq.height) != (gt.width, gt.height):
        error = f"{pair.lq}: {lq.width}x{lq.height}, its gt has {gt.width}x{gt.height}; upsample it to gt size first"
        return row | {"status": "size_mismatch", "error": error}
    return row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.index", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_params_arguments(parser)
    parser.add_argument("--check", action="store_true", help="report on every data set instead of writing the index")
    args = parser.parse_args(argv)
    try:
        params = read_params(args.params, args.overrides)
        config, paths = load_section(IndexConfig, "index", params), load_section(Paths, "paths", params)
        return _run(config, paths, args.check)
    except (ParamsError, OSError) as error:
        print(f"index: {error}", file=sys.stderr)
        return 1


def _run(config: IndexConfig, paths: Paths, check: bool) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begun, cache = time.monotonic(), ProbeCache(Path(paths.hash_cache))
    columns = (TextColumn("index"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    batches, held = [], []
    with Progress(*columns, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("index", total=None)
        for row in index_rows(config, cache, lambda done, total: progress.update(bar, completed=done, total=total)):
            held.append(row)
            if len(held) == 65536:
                batches.append(pa.RecordBatch.from_pylist(held, schema=SCHEMA))
                held = []
    batches.append(pa.RecordBatch.from_pylist(held, schema=SCHEMA))
    table = pa.Table.from_batches(batches, SCHEMA)
    if check:
        from pipeline.index_check import report

        return report(table, config)

    counts = Counter(table["status"].to_pylist())
    bad = table.num_rows - counts["ok"]
    images = len(set(table["gt_sha256"].to_pylist()) - {None})
    wrong = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()) if status != "ok") or "0 bad"
    summary = f"{counts['ok']} pairs, {images} distinct clean images, {wrong}, {time.monotonic() - begun:.1f} s"
    first = [error for error in table["error"].to_pylist() if error][:10]
    for error in first:
        print(f"  {error}", file=sys.stderr)
    if not counts["ok"] or bad > config.max_bad_fraction * table.num_rows:
        share = f"{bad} of {table.num_rows} rows are bad, more than index.max_bad_fraction = {config.max_bad_fraction}"
        print(f"index: {share} ({wrong}); the first {len(first)} are above. Nothing was written.", file=sys.stderr)
        return 1
    out = Path(paths.index)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(table, out)
    print(f"index: {summary} → {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
