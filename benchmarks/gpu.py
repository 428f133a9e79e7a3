"""Everything that is to be known about a GPU: what is right on it, how fast it is, and what bounds it.

    python benchmarks/gpu.py --record                     # all parts, at most 25 minutes on one H100
    python benchmarks/gpu.py --parts student trainer --minutes 5
    python benchmarks/gpu.py --toy --device cpu           # every part at toy size, as the tests do

    correctness   outputs on the GPU against the recorded ones in each precision; gradients of the recomputing
                  projections; CUDA graph, exact resume; restoring whole and tiled; captions in each precision, by
                  each way to decode; compiled blocks
    student       the authors' formulation against ours, eager, as a CUDA graph, compiled: time, memory, kernels
    teacher       captions at LLaVA-1.5-7B's shape, random weights: each precision, way to decode, the batch that fits
    trainer       student/train.py at the published size on PNG pairs, eight workers: images/s and the wait for data
    processes     the same by torchrun on every GPU (one: DDP of one process)

Each part runs in a process of its own, within its share of --minutes; what it has measured when its time is up is
kept. Writes gpu.json and gpu.md into --out. Needs torch, numpy, pillow, transformers, accelerate, safetensors,
huggingface_hub, bitsandbytes, pyarrow, pydantic, ruamel.yaml, psutil and rich, and downloads nothing. Ends with 1 when
a check failed or a part broke.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from tables import RESULTS, table, where

MINUTES = {"correctness": 3, "student": 8, "teacher": 8, "trainer": 4, "processes": 2}
"""Shares of the time, of 25 minutes in all."""
PACKAGES = ("transformers", "accelerate", "bitsandbytes", "numpy")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=MINUTES, default=list(MINUTES))
    parser.add_argument("--minutes", type=float, default=25, help="for all parts together")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--toy", action="store_true", help="sizes that a CPU can bear")
    parser.add_argument("--out", type=Path, default=Path("artifacts/gpu"))
    parser.add_argument("--record", action="store_true", help="append the tables to benchmarks/RESULTS.md")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the process that runs parts
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu: torch sees no GPU here; --toy --device cpu tries every part at toy size")
    if options.here:
        return run_here(options)
    options.out.mkdir(parents=True, exist_ok=True)
    deadline, ended = time.monotonic() + 60 * options.minutes, {}
    for part in options.parts:
        (options.out / f"{part}.jsonl").unlink(missing_ok=True)
    groups = [options.parts] if options.toy else [[part] for part in options.parts]  # at toy size imports take longest
    for i, group in enumerate(groups):
        share = sum(map(MINUTES.get, group)) / sum(MINUTES[part] for later in groups[i:] for part in later)
        how = run_parts(group, share * (deadline - time.monotonic()), options)
        ended |= dict.fromkeys(group, how)
        rows = {part: read_rows(options.out / f"{part}.jsonl") for part in options.parts}
        text = markdown(rows, ended, options)
        (options.out / "gpu.md").write_text(text, encoding="utf-8")
        facts = {"where": where(options.device), "versions": versions(), "ended": ended, "rows": rows}
        (options.out / "gpu.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print(text)
    if options.record:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(text)
    wrong = [row for part in rows.values() for row in part if row.get("right") == "NO"]
    return int(bool(wrong) or any(how not in ("done", "cut off") for how in ended.values()))


def run_parts(parts: list[str], seconds: float, options: argparse.Namespace) -> str:
    """How their process ended: "done", "cut off" when its time was up, or its exit code."""
    command = [sys.executable, __file__, "--here", "--parts", *parts, "--device", options.device]
    command += ["--out", str(options.out), *(["--toy"] if options.toy else [])]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"PYTHONPATH": path})
    try:
        code = process.wait(max(seconds, 1))
    except subprocess.TimeoutExpired:
        return "cut off"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # with its workers, also when it broke
        except ProcessLookupError:
            pass
        process.wait()
    return "done" if code == 0 else f"exit code {code}"


def run_here(options: argparse.Namespace) -> int:
    """In the parts' own process: a line of JSON for each row, as soon as it is measured."""
    from gpu_parts import correctness, speed, teacher

    modules = {"correctness": correctness, "teacher": teacher}
    for part in options.parts:
        measure = getattr(modules.get(part, speed), part)
        with (options.out / f"{part}.jsonl").open("w", encoding="utf-8") as file:
            for row in measure(options.device, options.toy, options.out):
                print(part, row, file=sys.stderr, flush=True)
                file.write(json.dumps(row) + "\n")
                file.flush()
    return 0


def read_rows(file: Path) -> list[dict]:
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def versions() -> str:
    there = {dist.metadata["Name"].lower(): dist.version for dist in importlib.metadata.distributions()}
    found = {name: there.get(name, "absent") for name in PACKAGES}
    found |= {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}
    return ", ".join(f"{name} {version}" for name, version in found.items())


def markdown(rows: dict[str, list[dict]], ended: dict[str, str], options: argparse.Namespace) -> str:
    """One entry of RESULTS.md; a table for each run of rows with the same first key."""
    lines = [f"\n## GPU{', toy size' if options.toy else ''}", where(options.device), f"({versions()})", ""]
    for part, how in ended.items():
        lines += [f"### {part}" + ("" if how == "done" else f" ({how})"), ""]
        for _, group in itertools.groupby(rows[part], key=lambda row: next(iter(row))):
            lines += [table(list(group)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
