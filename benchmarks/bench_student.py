"""The student against a plain formulation of the same function, paired in one run; medians, with peak memory.

    python benchmarks/bench_student.py                          # CPU: forward at 128² and 256², training step at 128²
    python benchmarks/bench_student.py --sizes 128 256 512 --repeats 5 --record
    python benchmarks/bench_student.py --device cuda --record   # training step at batch 12 and 24, eager and compiled

Both models hold the same weights at the published size (53 M), and equal outputs are asserted before anything is timed.
Times are medians of runs that alternate between the two. Memory is the allocator's peak on a GPU; on a CPU, the bytes
kept for the backward pass.

On a CPU, --keep-freed-memory gives both sides the allocator that `student.restore` runs with (`student.machine`)
instead of the one that PyTorch comes with: page faults, half of the plain side's time, are then gone from both.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from plain_student import PlainStudent
from torch import Tensor, nn

from student.machine import keep_freed_memory
from student.model import Student
from student.network.config import ModelConfig
from student.network.published_layout import to_published

RESULTS = Path(__file__).parent / "RESULTS.md"


def pair(config: ModelConfig, device: str) -> tuple[PlainStudent, Student]:
    """The same random weights in both formulations; asserts that the outputs are equal."""
    torch.manual_seed(0)
    student = Student(config)
    plain = PlainStudent(config)
    weights = to_published(student.state_dict(), config)
    for name, tensor in weights.items():
        if "cross_attn_q" in name or "cross_attn_k" in name:
            tensor.normal_(0, 0.02)  # dead, but not free: the plain formulation computes with them
    plain.load_state_dict(weights)
    plain, student = plain.to(device).eval(), student.to(device).eval()
    assert_equal(plain, student, half=False, atol=1e-5)
    return plain, student


def assert_equal(plain: PlainStudent, student: Student, half: bool, atol: float) -> None:
    """Both formulations give the same output, within `atol`."""
    device = next(student.parameters()).device
    lq = torch.rand(1, 3, 64, 64, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        torch.testing.assert_close(student(lq).float(), plain(lq).float(), atol=atol, rtol=0)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def medians(runs: list[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Median seconds of each of `runs`, which alternate so that a slow spell of the machine hits all alike."""
    seconds: list[list[float]] = [[] for _ in runs]
    for round_ in range(repeats + 1):  # the first round warms up
        for run, times in zip(runs, seconds, strict=True):
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_:
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def step(model: nn.Module, lq: Tensor, half: bool) -> Callable[[], None]:
    """One training step's forward and backward pass."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(lq.device.type, dtype=torch.bfloat16, enabled=half):
            restored = model(lq)
        (restored.float() - lq).abs().mean().backward()

    return run


def kept_bytes(model: nn.Module, lq: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass, parameters left out."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        restored = model(lq)
    total = sum(size for pointer, size in kept.items() if pointer not in parameters)
    del restored
    return total


def peak_bytes(run: Callable[[], None], other: nn.Module) -> int:
    """The peak of `run`, which leaves `other` alone: its weights lie in memory too and are taken off."""
    other.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - sum(p.nbytes for p in other.parameters())


def row(what: str, method: str, seconds: float, reference: float, memory: int | None) -> str:
    kept = "" if memory is None else f"{memory / 2**20:.0f} MiB"
    return f"| {what} | {method} | {seconds * 1e3:.0f} ms | {kept} | {reference / seconds:.2f}x |"


def forward_rows(plain: PlainStudent, student: Student, size: int, repeats: int, device: str) -> list[str]:
    lq = torch.rand(1, 3, size, size, device=device)
    with torch.inference_mode():
        student.fold()
        times = medians([lambda: plain(lq), lambda: student(lq)], repeats, device)
    what = f"forward {size}², batch 1, fp32"
    return [row(what, name, t, times[0], None) for name, t in zip(("plain", "ours"), times, strict=True)]


def cpu_step_rows(plain: PlainStudent, student: Student, size: int, repeats: int) -> list[str]:
    lq = torch.rand(2, 3, size, size)
    student.train()
    memory = [kept_bytes(model, lq) for model in (plain, student)]
    times = medians([step(model, lq, half=False) for model in (plain, student)], repeats, "cpu")
    names = ("plain", "ours")
    what = f"training step {size}², batch 2, fp32"
    return [row(what, name, t, times[0], m) for name, t, m in zip(names, times, memory, strict=True)]


def gpu_step_rows(plain: PlainStudent, student: Student, batch: int, repeats: int, compiled: bool) -> list[str]:
    """Eager in fp32, TF32 and bf16, compiled in bf16; ratios against the plain fp32 step, memory beside each.

    Compiled are 44 unrolled blocks, which takes minutes a graph; so only the precision that one would train in.
    """
    lq = torch.rand(batch, 3, 128, 128, device="cuda")
    student.train()
    rows, reference = [], None
    for precision in ("fp32", "tf32", "bf16"):
        use_tf32(precision == "tf32")
        half = precision == "bf16"
        assert_equal(plain, student, half, atol={"fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2}[precision])
        contenders = [("plain", plain, student), ("ours", student, plain)]
        if half and compiled:
            torch._dynamo.reset()
            contenders.append(("ours, compiled", torch.compile(student, dynamic=False), plain))
        runs = [step(model, lq, half) for _, model, _ in contenders]
        times = medians(runs, repeats, "cuda")
        reference = reference or times[0]
        what = f"training step 128², batch {batch}, {precision}"
        for (name, _, other), run, seconds in zip(contenders, runs, times, strict=True):
            rows.append(row(what, name, seconds, reference, peak_bytes(run, other)))
    use_tf32(False)
    return rows


def use_tf32(on: bool) -> None:
    """For matrix products and convolutions alike; cuDNN's default is on, cuBLAS's off, which suits neither side."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="sides of the forward's images")
    parser.add_argument("--step-size", type=int, default=128, help="side of the CPU training step's images; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-compile", action="store_true", help="cuda: leave the compiled rows out (minutes each)")
    parser.add_argument("--width", type=int, default=48, help="48 is the published size")
    parser.add_argument("--keep-freed-memory", action="store_true", help="CPU: no page faults on either side")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda: torch sees no GPU here; use --device cpu")
    if options.keep_freed_memory and not keep_freed_memory():
        sys.exit("error: --keep-freed-memory: this C library has no mallopt; leave it out")
    use_tf32(False)
    config = ModelConfig(width=options.width, zero_init_output=False, selection_noise=0, dropout=0)
    plain, student = pair(config, options.device)
    rows = []
    for size in options.sizes:
        rows += forward_rows(plain, student, size, options.repeats, options.device)
    if options.device == "cuda":
        for batch in (12, 24):
            rows += gpu_step_rows(plain, student, batch, options.repeats, not options.no_compile)
    elif options.step_size:
        rows += cpu_step_rows(plain, student, options.step_size, options.repeats)
    table = "\n".join(["| what | method | median | memory | speed-up |", "| --- | --- | --- | --- | --- |", *rows])
    print(table)
    if options.record:
        record(table, options.device)


def record(table: str, device: str) -> None:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    if device == "cuda":
        where = torch.cuda.get_device_name()
    else:
        vendor = "AMD EPYC" if "AMD" in Path("/proc/cpuinfo").read_text() else platform.processor()
        where = f"{torch.get_num_threads()} CPU cores ({vendor}, no GPU)"
    command = "python " + " ".join(["benchmarks/bench_student.py", *sys.argv[1:]])
    text = (
        f"\n## Student, {date.today()}\n\nCommit {commit}, {where}, torch {torch.__version__}: `{command}`\n\n{table}\n"
    )
    with open(RESULTS, "a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
