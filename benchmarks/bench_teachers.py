"""All teachers beside each other on one machine and one model: `caption.teacher: transformers`, `server`, `vllm`.

    python benchmarks/bench_teachers.py --vllm-python /path/to/env/bin/python --record

A random mid-size LLaVA is saved to a temporary folder; each teacher runs in a process of its own, in float32 on the
CPU, the server being `transformers serve`. Every repeat has images of its own, so that no cache of an earlier one
helps; captions, numbers of tokens and finish reasons must be equal, or the run fails. CPU seconds count all threads
and the server's process. Without --vllm-python there is no row of vLLM.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
KINDS = ("transformers", "server", "vllm")


def pictures(number: int) -> list[Image.Image]:
    """Smooth random RGB pictures of 640 x 480."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((640, 480)) for _ in range(number)]


def environment(threads: int) -> dict[str, str]:
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:threads]))
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    number = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    vllm = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": cores}
    return os.environ | number | vllm | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}


def one(job: dict) -> None:
    """The process of one teacher: prints a line of JSON with captions, seconds and CPU seconds of each repeat."""
    import psutil

    from pipeline.captioning.config import TEACHERS

    teacher = resolve_name(TEACHERS[job["kind"]])(
        job["model"], perspectives=job["questions"], quantization="none", max_new_tokens=job["new_tokens"],
        batch_size=job["images"], dtype="float32", device="cpu", **job["options"],
    )  # fmt: skip
    watched = [psutil.Process(pid) for pid in (os.getpid(), *job["pids"])]
    first, *images = pictures(1 + job["repeats"] * job["images"])
    teacher.caption([first])  # warm-up
    said, wall, cpu = [], [], []
    for start in range(0, len(images), job["images"]):
        used, started = _cpu(watched), time.perf_counter()
        said += teacher.caption(images[start : start + job["images"]])
        wall.append(time.perf_counter() - started)
        cpu.append(_cpu(watched) - used)
    captions = [{name: asdict(caption) for name, caption in of_image.items()} for of_image in said]
    print(json.dumps({"captions": captions, "wall": wall, "cpu": cpu}))


def _cpu(processes: list) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def save_model(folder: Path) -> dict[str, str]:
    """Write the random LLaVA; returns the questions."""
    import torch
    from bench_teacher import PROMPTS, SHAPES, random_llava

    from teacher.mini_training.checkpoint import save

    model, processor = random_llava(SHAPES["mid"], "none", torch.float32, "cpu")
    save(model, processor, folder)
    return PROMPTS


def measured(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A row of the table for each teacher; fails if one says something else than the first."""
    sys.path.append(str(HERE.parent / "tests"))
    from processes import free_port, transformers_serve

    job = {key: getattr(options, key) for key in ("images", "new_tokens", "repeats")}
    expected = base = None
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random-llava"
        job |= {"model": str(model), "questions": save_model(model)}
        for kind in KINDS if options.vllm_python else KINDS[:2]:
            python = options.vllm_python if kind == "vllm" else sys.executable
            if kind == "server":
                port = free_port()
                with transformers_serve(model, port, environment(options.threads)) as server:
                    address = {"server": f"http://127.0.0.1:{port}/v1"}
                    done = run(python, {**job, "kind": kind, "options": address, "pids": [server.pid]}, options)
            else:
                done = run(python, {**job, "kind": kind, "options": {}, "pids": []}, options)
            expected = expected or done["captions"]
            pairs = [(a[name], b[name]) for a, b in zip(done["captions"], expected, strict=True) for name in b]
            if unlike := [pair for pair in pairs if pair[0] != pair[1]]:
                sys.exit(f"bench_teachers: {kind} differs in {len(unlike)} of {len(pairs)} captions, first {unlike[0]}")
            wall, cpu = (statistics.median(done[key]) for key in ("wall", "cpu"))
            base = base or cpu
            n, different = options.images, len({a["text"] for a, _ in pairs})
            yield {
                "teacher": kind,
                "captions/s": f"{n * len(job['questions']) / wall:.3g}",
                "wall s an image": f"{wall / n:.2f}",
                "CPU s an image": f"{cpu / n:.2f}",
                "CPU, of transformers": f"{cpu / base:.2f}x",
                "equal captions": f"{len(pairs)} of {len(pairs)} ({different} different)",
            }


def run(python: str, job: dict, options: argparse.Namespace) -> dict:
    command = [python, __file__, "--one", json.dumps(job)]
    done = subprocess.run(command, env=environment(options.threads), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", help="python of an environment with vLLM (tests/test_teacher_vllm.py)")
    parser.add_argument("--images", type=int, default=4, help="images of a repeat, answered together")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3, help="the table has the medians")
    parser.add_argument("--threads", type=int, default=1, help="of each teacher, and of the server")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one)
    from tables import show

    title = f"bench_teachers: mid-size LLaVA, random weights, float32, {options.images} images x 5 questions x "
    show(f"{title}{options.new_tokens} new tokens, {options.threads} threads", list(measured(options)), options.record)


if __name__ == "__main__":
    main()
