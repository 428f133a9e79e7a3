"""What stages cost beside models: memory and CPU seconds of plan, rerun, embedding and release over synthetic rows.

    python benchmarks/bench_bookkeeping.py --images 100000 1000000 --record
    git worktree add ../before bff8b9f; python benchmarks/bench_bookkeeping.py --against ../before   # both, in turn

The commands themselves run, each in a process of its own, on an index and a full caption store (five perspectives,
twelve words a caption, parts of 1,000 images) that no model made. The embedder is replaced by one that gives random
vectors (384 numbers) whose time is taken off. Of --against, an earlier checkout, the index is one file and parts have
the names of version 0.1; the releases of both must be equal byte for byte, and the run fails if they are not.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from zlib import crc32

ROOT = Path(__file__).resolve().parents[1]
WORDS = "a the of bright dark red green forest house road sky water image shows view from above with many small".split()
PERSPECTIVES = ("brightness", "color", "content", "object", "viewpoint")
STEPS = {
    "plan, empty store": ("caption", "--plan", "--set", "paths.caption_store=none"),
    "caption, full store": ("caption",),
    "embed, all new": ("embed",),
    "embed, nothing new": ("embed",),
}


def make(images: int, before: bool) -> None:
    """Index, store and parameters in the current folder, for this checkout and (in `before/`) for version 0.1."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from pipeline.captioning.config import CaptionConfig
    from pipeline.captioning.store import PerspectiveStore
    from pipeline.indexing.table import SCHEMA
    from pipeline.indexing.writer import write_index
    from shards.arrays import hex_of
    from teacher.identity import caption_identities

    os.fsync = lambda _: None  # for 50,000 parts it would take longer than all else, and nothing here need last
    Path("model").mkdir()
    Path("model/model.safetensors").write_bytes(b"never loaded")
    paths = {
        "index": "index.parquet",
        "caption_store": "store",
        "release": "out/release",
        "caption_stats": "stats.json",
    }
    params = {
        "paths": paths,
        "caption": {"model": "model", "perspectives": {name: f"{name}?" for name in PERSPECTIVES}},
    }
    config = CaptionConfig(**params["caption"])
    Path("params.yaml").write_text(json.dumps(params))
    fixed = dict.fromkeys(SCHEMA.names) | {"domain": "natural", "task": "t", "split": "train", "mode": "RGB"}
    fixed |= {"width": 512, "height": 512, "status": "ok"}
    # 32 bytes an image are all that is held.
    digests = np.fromiter((hashlib.sha256(b"%d" % number).digest() for number in range(images)), "S32", images)

    def sha256s(start: int, end: int) -> list[str]:
        return hex_of(np.frombuffer(digests[start:end].tobytes(), ">u8").reshape(-1, 4))

    def rows():
        for start in range(0, images, 1000):
            for number, sha256 in enumerate(sha256s(start, start + 1000), start):
                name = f"set-{number % 97:03d}"
                yield fixed | {"dataset": name, "gt_path": f"/data/{name}/{number:09d}.png", "gt_sha256": sha256}

    write_index(rows(), "index.parquet", lambda: True, images)
    if before:
        os.mkdir("before")
        write_index(rows(), "before/index.parquet", lambda: True, 0)
        params["paths"] = paths | {"index": "before/index.parquet", "caption_store": "before/store"}
        params["paths"] |= {"release": "before/release", "caption_stats": "before/stats.json"}
        Path("before/params.yaml").write_text(json.dumps(params))
    rng, words = np.random.default_rng(0), pa.array(WORDS)
    digests.sort()
    for name, identity in caption_identities(**config.identity).items():
        store = PerspectiveStore("store", name, identity)
        row = {"perspective": name, "n_tokens": 14, "finish_reason": "stop", "status": "ok", "error": None}
        for start in range(0, images, 1000):
            chunk = sha256s(start, start + 1000)
            said = words.take(rng.integers(len(words), size=(len(chunk), 12)).ravel())
            texts = pc.binary_join(pa.ListArray.from_arrays(np.arange(0, len(said) + 1, 12, np.int32), said), " ")
            row |= {"path": f"/data/set-001/{start:09d}.png", "run": "r", "batch_images": 32}
            some = zip(chunk, texts.to_pylist(), strict=True)
            store.append([row | {"image_sha256": sha256, "caption": text} for sha256, text in some], "r", {})
        if before:
            folder = Path("before/store", store.fingerprint)
            folder.mkdir(parents=True)
            for part in store.parts:
                os.link(Path(store.directory, part.name), folder / f"part-{part.written}-{part.digest}.parquet")
    written = Path("index.parquet")
    assert images == sum(
        pq.read_metadata(file).num_rows for file in ([written] if written.is_file() else written.iterdir())
    )


class RandomVectors:
    """An embedder without a model; `cpu` is its own time."""

    cpu = 0.0

    def encode(self, texts):
        import numpy as np

        began = time.process_time()
        table = np.random.default_rng(0).standard_normal((4096, 384), dtype=np.float32)
        vectors = table[[crc32(text.encode()) % len(table) for text in texts]]
        RandomVectors.cpu += time.process_time() - began
        return vectors, np.full(len(texts), 14), np.zeros(len(texts), bool)


def step(name: str) -> None:
    """One command in this process; prints what it took as JSON."""
    from importlib import import_module

    stage = import_module(f"pipeline.{STEPS[name][0]}")
    spent = {}

    def timed(key, function):
        def call(*arguments, **named):
            began = time.process_time()
            answer = function(*arguments, **named)
            spent[key] = time.process_time() - began
            return answer

        return call

    if STEPS[name][0] == "embed":
        for module in ("pipeline.embed", "pipeline.embedding.run"):  # before and since it moved
            try:
                loaded = import_module(module)
            except ImportError:
                continue
            if hasattr(loaded, "load_embedder"):
                loaded.load_embedder = lambda _: RandomVectors()
        for key in ("write_release", "verify", "audit"):
            if hasattr(stage, key):  # audit: since it is there
                setattr(stage, key, timed(key, getattr(stage, key)))
    peak = Peak()
    began = time.process_time()
    stage.main(list(STEPS[name][1:]))
    cpu = time.process_time() - began - RandomVectors.cpu
    print(json.dumps({"cpu": cpu, "peak": peak.stop(), **spent}))


class Peak(threading.Thread):
    """The most private memory (RssAnon: without pages of files, which the system takes back) of this process, in MB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.most, self.ended = 0.0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            status = Path("/proc/self/status").read_text()
            self.most = max(self.most, int(status.partition("RssAnon:")[2].split()[0]) / 1024)

    def stop(self) -> float:
        self.ended.set()
        self.join()
        return self.most


def measure(code: Path, folder: Path, name: str, params: Path) -> dict:
    environment = os.environ | {"PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--step", name, "--params", str(params)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr or done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


def _beside(t: dict) -> float:
    """CPU seconds without those of the release, its verification and the audit."""
    return t["cpu"] - sum(t.get(key, 0.0) for key in ("write_release", "verify", "audit"))


def rows_of(images: int, against: Path | None) -> list[dict]:
    """Rows of the table for one size."""
    sides = {"after": (ROOT, Path("params.yaml"))} | (
        {"before": (against, Path("before/params.yaml"))} if against else {}
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, __file__, "--make", str(images), *(["--against", str(against)] if against else [])]
        subprocess.run(command, cwd=folder, env=environment, check=True)
        took = {}
        for step in STEPS:
            for side, (code, p) in sides.items():
                took[step, side] = measure(code, folder, step, p)
                print(f"{images:,} {step}, {side}: {took[step, side]}", file=sys.stderr, flush=True)
        if against:
            releases = [folder / "out/release", folder / "before/release"]
            ours, theirs = ({f.name: hashlib.sha256(f.read_bytes()).digest() for f in r.iterdir()} for r in releases)
            assert ours == theirs, f"other releases: {[name for name in ours if ours[name] != theirs.get(name)]}"
    table = []
    for (step, side), t in took.items():
        before = took.get((step, "before"))
        for label, cost in {step: _beside, "  + writing the release": lambda t: t.get("write_release")}.items():
            if not (cpu := cost(t)):
                continue
            row = {"images": f"{images:,}", "step": label, "code": side, "CPU s": f"{cpu:.2f}"}
            row |= {"an image": f"{1e6 * cpu / images:.1f} µs", "private memory": f"{t['peak']:.0f} MB"}
            table.append(row | {"speed-up": f"{cost(before) / cpu:.2f}x" if before else ""})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[100_000])
    parser.add_argument("--against", type=Path, help="a checkout of an earlier version, measured in turn")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--params", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make(args.make, before=bool(args.against))
    if args.step:
        STEPS[args.step] = (*STEPS[args.step], "--params", args.params)
        return step(args.step)
    from tables import show

    rows = [row for images in args.images for row in rows_of(images, args.against and args.against.resolve())]
    show("Bookkeeping beside models", rows, args.record)


if __name__ == "__main__":
    main()
