"""The student against a plain formulation of the same function, paired in one run; medians, with peak memory.

    python benchmarks/bench_student.py                          # forward at 128² and 256², training step at 128²
    python benchmarks/bench_student.py --sizes 128 256 512 --repeats 5 --record

On a CPU; benchmarks/gpu.py measures GPUs. Both models hold the same weights at the published size (53 M), and equal
outputs are asserted before anything is timed. Times are medians of runs that alternate between the two. Memory is the
bytes kept for the backward pass.

--keep-freed-memory gives both sides the allocator that `student.restore` runs with (`student.machine`)
instead of the one that PyTorch comes with: page faults, half of the plain side's time, are then gone from both.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from plain_student import PlainStudent
from tables import show
from torch import Tensor, nn

from student.machine import keep_freed_memory
from student.model import Student
from student.network.config import ModelConfig
from student.network.published_layout import to_published
from student.restoration.blocks import restoring


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


def step(model: nn.Module, lq: Tensor) -> Callable[[], None]:
    """One training step's forward and backward pass."""

    def run() -> None:
        model.zero_grad(set_to_none=True)
        (model(lq) - lq).abs().mean().backward()

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


def row(what: str, method: str, seconds: float, reference: float, memory: int | None = None) -> dict[str, object]:
    kept = None if memory is None else f"{memory / 2**20:.0f} MiB"
    return {
        "what": what, "method": method, "median": f"{seconds * 1e3:.0f} ms", "memory": kept,
        "speed-up": f"{reference / seconds:.2f}x",
    }  # fmt: skip


def forward_rows(
    plain: PlainStudent, student: Student, size: int, repeats: int, device: str, half: bool = False
) -> list[dict]:
    lq = torch.rand(1, 3, size, size, device=device)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
        restorer, _ = restoring(student)
        torch.testing.assert_close(restorer(lq).float(), student(lq).float(), atol=1e-2 if half else 1e-5, rtol=0)
        times = medians([lambda: plain(lq), lambda: restorer(lq)], repeats, device)
    what = f"forward {size}², batch 1, {'bf16' if half else 'fp32'}"
    return [row(what, name, t, times[0]) for name, t in zip(("plain", "ours"), times, strict=True)]


def cpu_step_rows(plain: PlainStudent, student: Student, size: int, repeats: int) -> list[dict]:
    lq = torch.rand(2, 3, size, size)
    student.train()
    memory = [kept_bytes(model, lq) for model in (plain, student)]
    times = medians([step(model, lq) for model in (plain, student)], repeats, "cpu")
    names = ("plain", "ours")
    what = f"training step {size}², batch 2, fp32"
    return [row(what, name, t, times[0], m) for name, t, m in zip(names, times, memory, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256], help="sides of the forward's images")
    parser.add_argument("--step-size", type=int, default=128, help="side of the training step's images; 0: none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=48, help="48 is the published size")
    parser.add_argument("--keep-freed-memory", action="store_true", help="no page faults on either side")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    if options.keep_freed_memory and not keep_freed_memory():
        sys.exit("error: --keep-freed-memory: this C library has no mallopt; leave it out")
    config = ModelConfig(width=options.width, zero_init_output=False, selection_noise=0, dropout=0)
    plain, student = pair(config, "cpu")
    rows = []
    for size in options.sizes:
        rows += forward_rows(plain, student, size, options.repeats, "cpu")
    if options.step_size:
        rows += cpu_step_rows(plain, student, options.step_size, options.repeats)
    show("Student", rows, options.record)


if __name__ == "__main__":
    main()
