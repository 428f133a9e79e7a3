"""The student against a plain formulation of the same function, paired in one run.

    python benchmarks/bench_student.py                          # forward at 128² and 256², training step at 128²
    python benchmarks/bench_student.py --sizes 128 256 512 --repeats 5 --record

On a CPU; benchmarks/gpu.py measures GPUs. Both models hold the same weights at the published size (53 M), and equal
outputs are asserted before anything is timed. Times are medians of runs that alternate between the two. Memory is the
bytes kept for the backward pass. --keep-freed-memory gives both sides the allocator that `student.restore` runs with
(`student.machine`): page faults, half of the plain side's time, are then gone from both.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from plain_student import PlainStudent
from tables import show
from torch import Tensor, nn

from student.machine import keep_freed_memory
from student.model import Student
from student.network.config import ModelConfig
from student.restoration.blocks import restoring


def pair(config: ModelConfig, device: str) -> tuple[PlainStudent, Student]:
    """The same random weights in both formulations; asserts that the outputs are equal."""
    torch.manual_seed(0)
    student = Student(config)
    plain, student = PlainStudent(config).load(student).to(device), student.to(device).eval()
    assert_equal(plain, student, half=False, atol=1e-5)
    return plain, student


def assert_equal(plain: PlainStudent, student: Student, half: bool, atol: float) -> None:
    """Both formulations give the same output, within `atol`."""
    device = next(student.parameters()).device
    lq = torch.rand(1, 3, 64, 64, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=half):
        torch.testing.assert_close(student(lq).float(), plain(lq).float(), atol=atol, rtol=0)


def medians(runs: list[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Median seconds of each of `runs`, which alternate so that a slow spell of the machine hits all alike."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, times in zip(runs, seconds, strict=True):
            synchronize()
            start = time.perf_counter()
            run()
            synchronize()
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]  # the first round warms up


def step(model: nn.Module, lq: Tensor) -> None:
    """One training step's forward and backward pass."""
    model.zero_grad(set_to_none=True)
    (model(lq) - lq).abs().mean().backward()


def kept_bytes(model: nn.Module, lq: Tensor) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward pass, parameters left out."""
    kept, parameters = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _restored = model(lq)  # alive, or its graph would be freed, and addresses be used twice
    return sum(size for pointer, size in kept.items() if pointer not in parameters)


def rows(what: str, times: list[float], memory: list[int | None]) -> list[dict[str, object]]:
    return [
        {
            "what": what, "method": method, "median": f"{seconds * 1e3:.0f} ms",
            "memory": kept and f"{kept / 2**20:.0f} MiB", "speed-up": f"{times[0] / seconds:.2f}x",
        }
        for method, seconds, kept in zip(("plain", "ours"), times, memory, strict=True)
    ]  # fmt: skip


def forward_rows(
    plain: PlainStudent, student: Student, size: int, repeats: int, device: str, half: bool = False
) -> list[dict[str, object]]:
    lq = torch.rand(1, 3, size, size, device=device)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=half):
        restorer, _ = restoring(student)
        torch.testing.assert_close(restorer(lq).float(), student(lq).float(), atol=1e-2 if half else 1e-5, rtol=0)
        times = medians([lambda: plain(lq), lambda: restorer(lq)], repeats, device)
    return rows(f"forward {size}², batch 1, {'bf16' if half else 'fp32'}", times, [None, None])


def step_rows(plain: PlainStudent, student: Student, size: int, repeats: int) -> list[dict[str, object]]:
    lq, models = torch.rand(2, 3, size, size), (plain, student.train())
    memory = [kept_bytes(model, lq) for model in models]
    times = medians([partial(step, model, lq) for model in models], repeats, "cpu")
    return rows(f"training step {size}², batch 2, fp32", times, memory)


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
    measured = [row for size in options.sizes for row in forward_rows(plain, student, size, options.repeats, "cpu")]
    if options.step_size:
        measured += step_rows(plain, student, options.step_size, options.repeats)
    show("Student", measured, options.record)


if __name__ == "__main__":
    main()
