"""Stage `index`: data set folders → one row per pair in `paths.index`, with the sha256 of the clean image.

Broken, missing, mis-sized and unpaired files are rows with a status; they are counted, and the stage fails above
`index.max_bad_fraction`. Hashes are remembered by path, size, times and inode: an unchanged file is read once.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from pipeline.indexing.config import DatasetSpec, IndexConfig
from pipeline.indexing.pairs import Candidate, candidates
from pipeline.indexing.probe_cache import Probe, ProbeCache, probe_all
from pipeline.indexing.table import SCHEMA, UPSAMPLE
from pipeline.indexing.tally import Tally
from pipeline.indexing.writer import write_index
from pipeline.params import Params, load_all
from student.images.workers import ImageWorkers
from student.params import ParamsError, add_params_arguments
from student.places import is_folder
from student.progress import progress
from student.training.config import losses_without_pool


def listed(config: IndexConfig) -> tuple[IndexConfig, int, list[str]]:
    """`config` without the splits that are not there, the number of pairs, and why each of those cannot be listed.

    Every folder is listed before the first file is read, so that all wrong names are told at once.
    """
    total, faults, datasets = 0, [], []
    try:
        there = is_folder(config.root)
    except OSError as error:
        raise ParamsError(f"index.root = {config.root}: {error.strerror}") from None
    if not there:
        remedy = "point it at your data, e.g. --set index.root=/data"
        raise ParamsError(f"index.root = {config.root}: no such folder; {remedy}")
    for dataset in config.datasets:
        splits = {}
        for split, spec in dataset.splits.items():
            try:
                total += sum(1 for _ in candidates(config, dataset, split))
                splits[split] = spec
            except ParamsError as error:
                faults.append(str(error))
        datasets += [dataset.model_copy(update={"splits": splits})] if splits else []
    return config.model_copy(update={"datasets": datasets}), total, faults


def index_rows(config: IndexConfig, cache: ProbeCache, marks: bool = False) -> Iterator[tuple[dict, Probe | None]]:
    """Rows of the index in the order of `config` and then of the paths, each with the probe of its lq, if any; with the
    `marks` of its gt where these are asked for.

    Raises `ParamsError` for folders and lists that do not exist.
    """
    splits = [(dataset, split) for dataset in config.datasets for split in dataset.splits]
    with ImageWorkers(config.workers or os.cpu_count() or 1, config.image_timeout_s) as workers:
        for dataset, split in splits:
            degradation = dataset.splits[split].degradation
            fixed = {"dataset": dataset.name, "domain": dataset.domain, "task": dataset.task, "split": split}
            fixed["degradation"] = degradation and degradation.model_dump_json()
            pairs = list(candidates(config, dataset, split))
            files = (path for pair in pairs for path in (pair.gt, pair.lq) if path and pair.status == "ok")
            with closing(probe_all(files, cache, workers, config.max_pixels, marks)) as probes:
                for pair in pairs:
                    gt, lq = (*_take(pair, probes), None, None)[:2]
                    yield fixed | _row(pair, gt, lq, dataset), lq


def _take(pair: Candidate, probes: Iterator[Probe]) -> list[Probe]:
    return list(islice(probes, (pair.lq is not None) + 1)) if pair.status == "ok" else []


def _row(pair: Candidate, gt: Probe | None, lq: Probe | None, dataset: DatasetSpec) -> dict:
    row, ends = dict.fromkeys(("gt_sha256", "width", "height", "mode", "range", "upsample")), dataset.range
    row |= {"gt_path": pair.gt, "lq_path": pair.lq, "status": pair.status, "error": pair.error}
    if gt is None:
        return row
    row |= {
        "marks": gt.marks,
        "gt_sha256": gt.sha256,
        "width": gt.width or None,
        "height": gt.height or None,
        "mode": gt.mode or None,
    }
    if ends or gt.low < gt.high:  # one range a pair, from gt or from the data set
        row["range"] = json.dumps(ends or (gt.low, gt.high))
    if error := gt.error or (lq and lq.error):
        return row | {"status": "unreadable", "error": error}
    if lq and (lq.width, lq.height) != (gt.width, gt.height):
        scale = gt.width // max(lq.width, 1)
        fits = scale > 1 and (lq.width * scale, lq.height * scale) == (gt.width, gt.height)
        if fits and dataset.upsample:
            return row | {"upsample": scale}
        remedy = "give its data set upsample: bicubic, which enlarges it when it is read" if fits else _remedy(gt, lq)
        error = f"{pair.lq}: {lq.width}x{lq.height}, its gt has {gt.width}x{gt.height}; {remedy}"
        return row | {"status": "size_mismatch", "error": error}
    return row


def _remedy(gt: Probe, lq: Probe) -> str:
    """For sizes of which no whole number of times makes one of the other."""
    scale = round(gt.width / max(lq.width, 1))
    if scale > 1 and (gt.width // scale, gt.height // scale) == (lq.width, lq.height):
        return f"crop it to multiples: python -m pipeline.prepare crop GT CROPPED --set prepare.scale={scale}"
    return "both have one size, or gt is a whole number of times larger (python -m pipeline.prepare --help)"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python -m pipeline.index                                  write the index that params.yaml describes
  python -m pipeline.index --check                          report on every data set; writes only the hash cache
  python -m pipeline.index --params recipes/md-6t.yaml --set index.root=/data --check
  python -m pipeline.index --set index.max_bad_fraction=0.01   leave out up to 1 % bad files
""",
    )
    add_params_arguments(parser)
    parser.add_argument("--check", action="store_true", help="report on every data set instead of writing the index")
    parser.add_argument("--skip-missing", action="store_true", help="leave out data sets that are not there")
    parser.add_argument("--rehash", action="store_true", help="read every file again, also those that look unchanged")
    args = parser.parse_args(argv)
    try:
        params = load_all(args.params, args.overrides)
        if params.index is None:
            raise ParamsError(f"{args.params}: no section index; docs/datasets.md shows one")
        return _run(params, params.index, args)
    except (ParamsError, OSError) as error:
        print(f"index: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("index: stopped; what was hashed is remembered", file=sys.stderr)
        return 130


def _run(params: Params, config: IndexConfig, args: argparse.Namespace) -> int:
    begun, cache, tally = time.monotonic(), ProbeCache(Path(params.paths.hash_cache), args.rehash), Tally()
    declared = {dataset.name for dataset in config.datasets if "train" in dataset.splits}
    config, total, absent = listed(config)
    have = ", ".join(sorted(declared))
    faults = [
        f"train.dataset_weights names {name!r}, no data set with a split train; these are: {have}"
        for name in sorted(params.train.dataset_weights.keys() - declared)
    ]
    if wrong := losses_without_pool(params.train.losses, params.model.domain_pool, params.model.has_prompts):
        faults.append(wrong)
    if args.skip_missing:
        for fault in absent:
            print(f"index: left out: {fault}", file=sys.stderr)
    else:
        faults = absent + faults
    if faults and not args.check:
        remedy = "fix the names" + ", or leave out what is not there with --skip-missing" * bool(absent)
        raise ParamsError("\n  ".join([*faults, remedy]))
    with progress("index", total) as advance:
        rows = _showing(index_rows(config, cache, marks=args.check), advance)
        if args.check:
            from pipeline.indexing.check import Check

            seen = Check(config)
            for row, lq in rows:
                seen.add(tally.add(row), lq)
            return seen.report(tally, faults)
        out = params.paths.index
        taken = (tally.add(row) for row, _ in rows)
        schema = SCHEMA.append(UPSAMPLE) if any(dataset.upsample for dataset in config.datasets) else SCHEMA
        written = write_index(taken, out, lambda: tally.acceptable(config), total, schema)
    for error in tally.first:
        print(f"  {error}", file=sys.stderr)
    if not written:
        share = f"{tally.bad} of {total} rows are bad, more than index.max_bad_fraction = {config.max_bad_fraction}"
        remedy = f"fix them, or allow them with --set index.max_bad_fraction={tally.fraction:g}. Nothing was written."
        print(f"index: {share} ({tally.faults}); the first {len(tally.first)} are above: {remedy}", file=sys.stderr)
        return 1
    summary = f"{tally.statuses['ok']} pairs, {tally.images} distinct clean images, {tally.faults}"
    print(f"index: {summary}, {time.monotonic() - begun:.1f} s → {out}")
    return 0


def _showing(rows: Iterator, advance: Callable[[int], None]) -> Iterator:
    """Pass rows through, and show how many."""
    shown, done = time.monotonic(), 0
    for row in rows:
        yield row
        done += 1
        if time.monotonic() - shown > 0.2:
            advance(done)
            shown, done = time.monotonic(), 0
    advance(done)


if __name__ == "__main__":
    sys.exit(main())
