"""How fast a GPU is at what this project does: parts "student", "trainer" and "processes" of gpu.py."""

import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpu_parts.runs import TOY_MODEL, in_precision, log_rows, make_data, params, run

ROOT = Path(__file__).resolve().parents[2]
Rows = Iterator[dict[str, Any]]


def student(device: str, toy: bool, out: Path) -> Rows:
    """Steps of forward, backward and Adam. The most wanted first: time may be up."""
    from bench_student import assert_equal, forward_rows, pair

    from student.network.config import ModelConfig
    from student.network.gpu_blocks import GpuRestormer

    config = ModelConfig(**(TOY_MODEL if toy else {}), zero_init_output=False, selection_noise=0, dropout=0)
    plain, ours = pair(config, device)
    lean = copy.deepcopy(ours)
    lean.backbone.__class__ = GpuRestormer
    side, batches = (32, (2,)) if toy else (128, (12, 24))
    repeats = 2 if toy else 8
    for model in (ours, lean):
        for precision, atol in (("tf32", 1e-2), ("fp32", 1e-5)):
            in_precision(device, precision)
            assert_equal(plain, model, False, atol)
        assert_equal(plain, model, True, 5e-2)
    for batch in batches:
        for precision in ("bf16", "fp32", "tf32") if device == "cuda" else ("bf16", "fp32"):
            reference, run_step = None, Steps(device, precision, side, repeats)
            for half in (batch, batch // 2):
                row = run_step(plain, (ours, lean), half, "authors'")
                reference = row.get("images/s")
                yield row
                if reference:
                    break
            for method in ("ours", "ours, CUDA graph") if device == "cuda" else ("ours",):
                yield run_step(lean, (plain, ours), batch, method, reference)
            yield run_step(ours, (plain, lean), batch, "ours, blocks as on a CPU", reference)
    for size in (64,) if toy else (256, 512):
        for half in (False, True):
            yield from forward_rows(plain, ours, size, repeats, device, half)
    yield from counted({"authors'": plain, "ours, blocks as on a CPU": ours, "ours": lean}, device, side)
    yield from kernels(lean, device, batches[0], side, out)
    if not toy:  # minutes
        run_step = Steps(device, "bf16", side, repeats)
        for method in ("ours, compiled", "ours, compiled, CUDA graph"):
            yield run_step(lean, (plain, ours), batches[0], method)
        yield run_step(ours, (plain, lean), batches[0], "ours, blocks as on a CPU, compiled")


class Steps:
    """Measures training steps of one precision; a call returns a row."""

    def __init__(self, device: str, precision: str, side: int, repeats: int):
        self.device, self.precision, self.side, self.repeats = device, precision, side, repeats

    def __call__(
        self, model: nn.Module, others: tuple[nn.Module, ...], batch: int, method: str, reference: float | None = None
    ) -> dict[str, Any]:
        row = {"step": f"{batch} crops of {self.side}²", "precision": self.precision, "method": method}
        for each in (model, *others):
            each.zero_grad(set_to_none=True)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            step = make_step(model, self.device, self.precision, batch, self.side, "compiled" in method)
            if "graph" in method:
                from student.training.cuda_graph import Recorded

                step = Recorded(step)
            seconds = median_seconds(step, self.repeats, self.device)
        except torch.OutOfMemoryError:
            return row | {"ms": "out of memory"}
        row |= {"ms": round(1e3 * seconds, 1), "images/s": round(batch / seconds, 1)}
        if self.device == "cuda":
            peak = torch.cuda.max_memory_allocated() - sum(p.nbytes for other in others for p in other.parameters())
            row["peak memory"] = f"{peak / 2**30:.1f} GiB"
        if reference:
            row["speed-up"] = f"{row['images/s'] / reference:.2f}x"
        return row


def make_step(
    model: nn.Module, device: str, precision: str, batch: int, side: int, compiled: bool = False
) -> Callable[[], None]:
    """One update of `model` by random crops."""
    lq, gt = (torch.rand(batch, 3, side, side, device=device) for _ in range(2))
    cuda = device == "cuda"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=cuda, capturable=cuda)
    forward = torch.compile(model, dynamic=False) if compiled else model
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with in_precision(device, precision):
            restored = forward(lq)
        (restored.float() - gt).abs().mean().backward()
        optimizer.step()

    return step


def median_seconds(function: Callable[[], Any], repeats: int, device: str, idle: int = 4) -> float:
    """After `idle` calls to warm up, of which a recorded step needs four."""
    times = []
    for i in range(repeats + idle):
        begun = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        if i >= idle:
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def counted(models: dict[str, nn.Module], device: str, side: int) -> Rows:
    """What a bf16 step of two crops asks of the device, counted alike for all (student/training/step_cost.py)."""
    from student.training.step_cost import StepCost

    for method, model in models.items():
        step = make_step(model, device, "bf16", 2, side)
        step()  # makes Adam's state
        with StepCost() as cost:
            step()
        facts = {"kernels": cost.kernels, "GB moved": round(cost.bytes / 1e9, 3)}
        yield {"counted": method, **facts, "T operations": round(cost.operations / 1e12, 4)}
        model.zero_grad(set_to_none=True)


def kernels(model: nn.Module, device: str, batch: int, side: int, out: Path) -> Rows:
    """What runs in one bf16 step: its number, its time, and the kernels that take most of it; a trace for a viewer."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    step = make_step(model, device, "bf16", batch, side)
    step()
    cuda = [ProfilerActivity.CUDA] if device == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *cuda]) as measured:
        step()
        if cuda:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    events = [event for event in measured.key_averages() if event.device_type == kind]
    events.sort(key=lambda event: -(event.self_device_time_total if cuda else event.self_cpu_time_total))
    times = [(event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 for event in events]
    yield {"kernels": "all", "calls": sum(event.count for event in events), "ms": round(sum(times), 2)}
    for event, ms in list(zip(events, times, strict=True))[:15]:
        yield {"kernels": event.key[:100].replace("|", "/"), "calls": event.count, "ms": round(ms, 2)}
    measured.export_chrome_trace(str(out / "trace.json.gz"))


def sizes(toy: bool) -> tuple[dict, dict, dict]:
    """(data, model, train) of the measured run."""
    train = {"val_every": 0, "save_every": 10**6, "ema_decay": 0.999}
    if toy:
        small = {"batch_size": 4, "patch_size": 32, "max_steps": 6, "log_every": 2, "num_workers": 1}
        return {"images": 6, "side": 48, "dim": 32}, TOY_MODEL, train | small
    return {"images": 48, "side": 512, "dim": 512}, {"prompt_dim": 512}, train | {"max_steps": 60, "log_every": 10}


def rates(out: Path) -> dict[str, Any]:
    """Medians over a run's rows, the first left out."""
    rows = log_rows(out)[1:]
    keys = [key for key in ("images_per_second", "data_wait_fraction", "gpu_gib") if key in rows[0]]
    return {key: round(statistics.median(row[key] for row in rows), 3) for key in keys}


def trainer(device: str, toy: bool, _out: Path) -> Rows:
    data, model, train = sizes(toy)
    variants = {"eager": {}}
    if device == "cuda":
        variants["CUDA graph"] = {"cuda_graph": True}
        variants["CUDA graph, decoded images in memory"] = {"cuda_graph": True, "cache_images": "memory"}
    variants["without distillation"] = {"losses": {"align": 0}}
    if device == "cuda":
        variants["compiled"] = {"compile": True}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, **data)
        for name, options in variants.items():
            out = folder / name.replace(" ", "-")
            run(folder, out, model, device, **train | options)
            yield {"trained": name, **rates(out)}


def processes(device: str, toy: bool, _out: Path) -> Rows:
    data, model, train = sizes(toy)
    count = torch.cuda.device_count() if device == "cuda" else 1
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, **data)
        file, out = folder / "params.yaml", folder / "student"
        file.write_text(json.dumps(params(folder, out, model, **train)))  # JSON is YAML
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        environment = os.environ | {"ACCELERATE_USE_CPU": str(int(device == "cpu"))}
        subprocess.run([*command, "student/train.py", "--params", str(file)], cwd=ROOT, env=environment, check=True)
        yield {"torchrun": f"{count} process{'es' if count > 1 else ''}", **rates(out)}
