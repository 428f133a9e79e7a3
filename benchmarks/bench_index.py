"""Index rate over many small files, cold and warm, and its peak memory: `python benchmarks/bench_index.py --record`."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tables import show

ROOT = Path(__file__).resolve().parents[1]


def make_files(folder: Path, pairs: int) -> None:
    """`pairs` gt and lq PNGs of 32 x 32, each with content of its own."""
    rng = np.random.default_rng(0)
    for side in ("gt", "lq"):
        (folder / side).mkdir(parents=True)
        for number in range(pairs):
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / side / f"{number:07}.png")


def measure(project: Path) -> tuple[float, float]:
    """(seconds, peak MiB of the largest process) of one `python -m pipeline.index`."""
    script = """if __name__ == "__main__":
    import resource, sys
    from pipeline.index import main
    code = main([])
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
    sys.exit(code)
"""
    (project / "run.py").write_text(script)
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "run.py"], cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started, int(re.search(r"peak (\d+)", done.stderr)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000, help="image files, half gt and half lq")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        make_files(project / "data", args.files // 2)
        entry = {"name": "many", "domain": "d", "task": "t", "splits": {"train": {"gt": "gt", "lq": "lq"}}}
        (project / "params.yaml").write_text(json.dumps({"index": {"root": "data", "datasets": [entry]}}))
        runs = {name: measure(project) for name in ("cold: every file read, hashed, decoded", "warm: hash cache")}
    slowest = max(seconds for seconds, _ in runs.values())
    rows: list[dict[str, object]] = [
        {"method": name, "seconds": f"{seconds:.1f}", "files/s": f"{args.files / seconds:,.0f}"}
        | {"peak memory": f"{peak:.0f} MiB", "ratio": f"{slowest / seconds:.2f}x"}
        for name, (seconds, peak) in runs.items()
    ]
    show(f"Index, {args.files:,} files of 32 x 32 pixels", rows, args.record)


if __name__ == "__main__":
    main()
