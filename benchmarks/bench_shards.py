"""Measure the shards room against what people would write themselves, on the same images and vectors.

  python benchmarks/bench_shards.py                        # 10,000 and 100,000 images
  python benchmarks/bench_shards.py --rows 10000 100000 1000000 --record

Rivals: (a) pandas.read_parquet and a dict from hash to row; (b) `datasets` (memory-mapped) and such a dict;
(c) captions in a JSON file, encoded on the fly by a CLIP-sized text tower (five captions an image), which is what the
published configuration implies. Each rival runs in a process of its own. `open` is the time from nothing to the first
answer; `private` is memory that is not page cache (growth of RssAnon since the libraries were imported). `cold`
evicts the release's files from the page cache first. Rates are medians of five rounds, of one for (c), which is slow.
(a) and (b) must give the very same vectors as the release; (c), whose tower has random weights, cannot.
"""

import argparse
import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from tables import show

from shards import open_release, write_release

DIM = 1024
PERSPECTIVES = ("brightness", "category", "colour", "content", "viewpoint")
WORDS = "a the of bright dark red green forest house road sky water image shows view from above with many small".split()


def sha_of(i: int) -> str:
    return hashlib.sha256(b"%d" % i).hexdigest()


def batches(rows: int, spent: list[float], size: int = 4096) -> Iterator[pa.RecordBatch]:
    """Random rows in order of their hashes; the seconds that making them takes are added to `spent`."""
    rng, words, images = np.random.default_rng(0), np.array(WORDS), sorted(map(sha_of, range(rows)))
    for start in range(0, rows, size):
        began, n = time.perf_counter(), min(size, rows - start)
        texts = [" ".join(line) for line in words[rng.integers(len(words), size=(n * len(PERSPECTIVES), 10))]]
        columns = [PERSPECTIVES * n, texts, pa.array([12] * len(texts), pa.int32()), ["stop"] * len(texts)]
        captions = pa.StructArray.from_arrays(
            [pa.array(column) for column in columns], ["perspective", "text", "n_tokens", "finish_reason"]
        )
        offsets = pa.array(np.arange(0, len(texts) + 1, len(PERSPECTIVES), dtype=np.int32))
        side = pa.array([256] * n, pa.int32())
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(n * DIM, dtype=np.float32)), DIM)
        batch = pa.RecordBatch.from_arrays(
            [pa.array(images[start : start + n]), side, side, pa.ListArray.from_arrays(offsets, captions), vectors],
            ["image_sha256", "width", "height", "captions", "embedding"],
        )
        spent.append(time.perf_counter() - began)
        yield batch


def private_mib() -> float:
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


class Ours:
    def __init__(self, folder: str):
        self.release = open_release(folder)

    def lookup(self, images):
        return self.release.lookup(images)[0]


class Pandas:
    def __init__(self, folder: str):
        import pandas

        parts = sorted(Path(folder).glob("features-*.parquet"))
        table = pandas.concat([pandas.read_parquet(part, columns=["image_sha256", "embedding"]) for part in parts])
        self.row = dict(zip(table["image_sha256"], table["embedding"], strict=True))

    def lookup(self, images):
        return np.stack([self.row[image] for image in images]).astype(np.float32)


class Datasets:
    def __init__(self, folder: str):
        import datasets

        datasets.disable_progress_bars()
        data = datasets.load_dataset(folder, split="train", cache_dir=f"{Path(folder).parent}/datasets-cache")
        self.row = {image: i for i, image in enumerate(data["image_sha256"])}
        self.data = data.select_columns(["embedding"]).with_format("numpy")

    def lookup(self, images):
        return self.data[[self.row[image] for image in images]]["embedding"].astype(np.float32)


class JsonEncoded:
    """Captions from JSON through a random text tower of CLIP RN50's size (width 512, 12 layers), 77 tokens at most."""

    def __init__(self, folder: str):
        import torch
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        self.torch = torch
        self.captions = json.loads(Path(folder).with_name("captions.json").read_text())
        config = CLIPTextConfig(hidden_size=512, intermediate_size=2048, num_attention_heads=8, projection_dim=DIM)
        self.tower = CLIPTextModelWithProjection(config).eval()

    def lookup(self, images):
        out = []
        for image in images:  # ten words: about twelve tokens; the ids do not change the time
            ids = self.torch.full((len(self.captions[image]), 12), 500)
            with self.torch.inference_mode():
                out.append(self.tower(input_ids=ids).text_embeds.mean(0).numpy())
        return np.stack(out)


RIVALS = {"shards": Ours, "pandas + dict": Pandas, "datasets + dict": Datasets, "JSON, encoded": JsonEncoded}
HEAVY = dict(zip(RIVALS, ("shards", "pandas", "datasets", "transformers, torch"), strict=True))


def measure(name: str, folder: str, rows: int, cold: bool) -> dict:
    """In a fresh process: open, look up, report. Imports are not counted."""
    exec(f"import pyarrow.parquet, {HEAVY[name]}")
    if cold:
        for path in Path(folder).iterdir():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before, start = private_mib(), time.perf_counter()
    rival = RIVALS[name](folder)
    rival.lookup([sha_of(0)])
    result, rng, slow = {"open": time.perf_counter() - start}, random.Random(0), name == "JSON, encoded"
    if cold:
        return result
    if not slow:
        same = [sha_of(rng.randrange(rows)) for _ in range(256)]
        result["answer"] = hashlib.sha256(np.ascontiguousarray(rival.lookup(same), np.float32)).hexdigest()
    for size in (1, 12, 4096):
        total = (12 if slow else 4000) if size < 4096 else (24 if slow else 3 * 4096)
        questions = [
            [sha_of(rng.randrange(rows)) for _ in range(min(size, total))] for _ in range(max(1, total // size))
        ]
        times = []
        for _ in range(1 if slow else 5):
            start = time.perf_counter()
            for question in questions:
                rival.lookup(question)
            times.append(time.perf_counter() - start)
        result[f"by {size}"] = sum(map(len, questions)) / statistics.median(times)
    return {**result, "private": private_mib() - before}


def in_child(*arguments) -> dict:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def one_size(rows: int, scratch: Path) -> tuple[list[dict], str]:
    """The table's rows, and how fast the release was written."""
    folder, making = scratch / "caption_shards", list[float]()
    identity = {"fingerprints": dict.fromkeys(PERSPECTIVES, "a" * 64), "teacher_fingerprint": "b" * 64}
    aliases = ((f"{i}.png", "set", "natural", sha_of(i)) for i in range(rows))
    start = time.perf_counter()
    manifest = write_release(folder, batches(rows, making), aliases, teacher={}, embedder={}, dim=DIM, **identity)
    seconds = time.perf_counter() - start - sum(making)
    size = sum(entry["bytes"] for entry in [*manifest["parts"], *manifest["files"]]) / 1e6
    written = f"{rows:,} images, {size:,.0f} MB: written at {rows / seconds:,.0f} rows/s, {size / seconds:,.0f} MB/s"
    captions = {}
    for batch in open_release(folder).iter_batches(4096, ["image_sha256", "captions"]):
        captions |= {row["image_sha256"]: [c["text"] for c in row["captions"]] for row in batch.to_pylist()}
    (scratch / "captions.json").write_text(json.dumps(captions))
    ours: dict = {}
    found = []
    for name in RIVALS:
        in_child(name, folder, rows, 0)  # the first run fills caches, the page cache and that of `datasets`
        warm, cold = in_child(name, folder, rows, 0), in_child(name, folder, rows, 1)
        ours = ours or warm
        if warm.get("answer", ours["answer"]) != ours["answer"]:
            sys.exit(f"bench_shards: {name} gives other vectors than the release")
        rates = {f"lookups/s, by {n}": f"{warm[f'by {n}']:,.0f}" for n in (1, 12, 4096)}
        # Below 8 MiB the reader's own growth is noise, and a ratio to it would flatter.
        memory = f"{warm['private'] / max(ours['private'], 8):.2f}x"
        times = {"open, warm": f"{warm['open']:.3f} s", "cold": f"{cold['open']:.3f} s"}
        ratios = {"open": f"{warm['open'] / ours['open']:.2f}x", "memory": memory}
        private = {"private": f"{warm['private']:,.0f} MiB"}
        found.append({"images": f"{rows:,}", "method": name} | times | rates | private | ratios)
        print(found[-1], file=sys.stderr)
    return found, f"{written} (making the rows, {sum(making):.1f} s, not counted)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--scratch", help="folder for temporary files (about 6 kB a row; default: the system's)")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/RESULTS.md")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, folder, rows, cold = args.child
        print(json.dumps(measure(name, folder, int(rows), bool(int(cold)))))
        return
    lines, remarks = [], []
    for rows in args.rows:
        with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
            found, remark = one_size(rows, Path(scratch))
        lines += found
        remarks.append(remark)
    show("Shards", lines, args.record, remark="\n".join(remarks))


if __name__ == "__main__":
    main()
