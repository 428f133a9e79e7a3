"""What must be right on a GPU: part "correctness" of benchmarks/gpu.py.

A row's "right" says whether a check held: "yes" or "NO".
"""

import operator
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gpu_parts.runs import TOY_MODEL, in_precision, log_rows, make_data, run

REFERENCE = Path(__file__).resolve().parents[2] / "tests" / "reference"
TOP_K = {"restormer_dual": (2, 3), "restormer_task_only": (2, None), "nafnet_dual": (2, 3)}
LIMITS = {"fp32": 1e-5, "tf32": 2e-3, "bf16": 3e-2, "fp16": 5e-3}
"""Largest difference of any sample from the recorded output."""

Rows = Iterator[dict[str, Any]]


def yes(right: bool) -> str:
    return "yes" if right else "NO"


def correctness(device: str, toy: bool, _out: Path) -> Rows:
    for check in (parity, recomputed_gradients, formulations, restoring, captions, decoding):
        yield from check(device)
    yield from training_twice(device, 6 if toy else 20)
    if device == "cuda":  # a minute or two
        yield from formulations(device, compiled=True)


@torch.no_grad()
def parity(device: str) -> Rows:
    """The recorded models of tests/reference: largest difference from the recorded outputs."""
    from student.convert import import_published

    for name, top_k in TOP_K.items():
        student = import_published(REFERENCE / f"{name}.pth", *top_k)[0].to(device).eval()
        arrays = np.load(REFERENCE / f"{name}.npz")
        row: dict[str, Any] = {"parity": name}
        for precision in LIMITS:
            worst = 0.0
            for i in range(len(arrays.files) // 2):
                lq, expected = (torch.from_numpy(arrays[f"{kind}_{i}"]).to(device) for kind in ("input", "output"))
                with in_precision(device, precision):
                    worst = max(worst, (student(lq).float() - expected).abs().max().item())
            row[precision] = f"{worst:.1e}"
        yield row | {"right": yes(all(float(row[precision]) <= limit for precision, limit in LIMITS.items()))}


def recomputed_gradients(device: str) -> Rows:
    """Gradients of student/network/recompute.py against autograd's of the same formula, relative to the largest."""
    import torch.nn.functional as F

    from student.network.recompute import gated_product, project

    torch.manual_seed(0)
    norm, (x, a, b) = nn.LayerNorm(48).to(device), (torch.randn(2, 64, 64, 48, device=device) for _ in range(3))
    weights = [torch.randn(96, 48, device=device, requires_grad=True) for _ in range(3)]
    inputs = [x.requires_grad_(), a.requires_grad_(), b.requires_grad_(), *norm.parameters(), *weights]

    def ours() -> Tensor:
        return sum(out.square().mean() for out in (*project(x, norm, tuple(weights)), gated_product(a, b, weights[0])))

    def plain() -> Tensor:
        normed, gated = norm(x), F.gelu(a) * b
        outputs = [*(F.linear(normed, weight) for weight in weights), F.linear(gated, weights[0])]
        return sum(out.square().mean() for out in outputs)

    pairs = zip(*(torch.autograd.grad(function(), inputs) for function in (ours, plain)), strict=True)
    worst = max(((one - other).abs().max() / other.abs().max()).item() for one, other in pairs)
    yield {"gradients": "recomputing projections", "difference": f"{worst:.1e}", "right": yes(worst < 1e-4)}


def formulations(device: str, compiled: bool = False) -> Rows:
    """A step of the blocks for GPUs against one of the plain ones: the worst of all parameters' gradients, each error
    relative to the gradient."""
    from student.convert import import_published
    from student.network.gpu_blocks import GpuRestormer

    found: dict[tuple[bool, str], list[Tensor]] = {}
    for lean in (False, True):
        student = import_published(REFERENCE / "restormer_dual.pth", *TOP_K["restormer_dual"])[0].to(device)
        if lean:
            student.backbone.__class__ = GpuRestormer
            if compiled:
                student.compile(dynamic=False)
        for precision in ("fp32", "bf16"):
            lq = torch.linspace(0, 1, 2 * 3 * 32 * 48, device=device).view(2, 3, 32, 48).sin()
            with in_precision(device, precision):
                restored = student(lq)
            found[lean, precision] = list(torch.autograd.grad(restored.float().square().mean(), student.parameters()))
    for precision, limit in (("fp32", 1e-3), ("bf16", 0.5)):
        pairs = zip(found[True, precision], found[False, precision], strict=True)
        worst = max(((one - other).norm() / other.norm()).item() for one, other in pairs)
        row = {"blocks for GPUs": precision, "compiled": "yes" if compiled else "no", "difference": f"{worst:.1e}"}
        yield row | {"right": yes(worst < limit)}


def restoring(device: str) -> Rows:
    """One image, whole and in tiles, against the CPU: largest difference of the restored samples in [0, 1]."""
    from student.convert import import_published
    from student.restoration.restorer import Restorer

    student = import_published(REFERENCE / "restormer_dual.pth", *TOP_K["restormer_dual"])[0]
    lq = np.random.default_rng(0).random((3, 160, 144), dtype=np.float32)
    for tile in ("off", 64):
        expected, restored = (Restorer(student, place, tile=tile)(lq).image for place in ("cpu", device))
        worst = float(np.abs(restored - expected).max())
        yield {"restored": f"tile {tile}", "difference": f"{worst:.1e}", "right": yes(worst < 1e-4)}


def captions(device: str) -> Rows:
    """A small LLaVA, 16 new tokens: captions as on the CPU, in percent. Rounding may decide between near-equal words,
    so only float32 is held to the CPU's."""
    from bench_teacher import PROMPTS, quantize, random_llava, shared
    from PIL import Image

    from teacher.llava.shared_prefix import SharedPrefixGenerator
    from teacher.mini_training.checkpoint import Shape

    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((96, 72)) for pixels in noise]
    for quantization, dtype in (("none", torch.float32), ("nf4", torch.float32), ("nf4-dequantized", torch.float32),
                                ("int8", torch.float32), ("none", torch.bfloat16)):  # fmt: skip
        answers = []
        for place in ("cpu", device):
            torch.manual_seed(0)
            model, processor = random_llava(Shape(), "none", dtype, "cpu")
            model = model.to(place)
            quantize(model, quantization, dtype)
            generator = SharedPrefixGenerator(model, processor, PROMPTS, 16, min_new_tokens=16)
            answers.append([caption.text for row in shared(generator, images, 2) for caption in row.values()])
        equal = statistics.mean(one == other for one, other in zip(*answers, strict=True))
        exact = (quantization, dtype) == ("none", torch.float32)
        row = {"captions": quantization, "precision": str(dtype)[6:], "as on the CPU": f"{equal:.0%}"}
        yield row | {"right": yes(equal == 1 or not exact)}


def decoding(device: str) -> Rows:
    """Three ways to decode on the device, some rows ending early: captions as by the plainest, in percent. In float32
    they must agree."""
    from bench_teacher import PROMPTS, random_llava, shared
    from PIL import Image

    from teacher.llava.shared_prefix import SharedPrefixGenerator
    from teacher.mini_training.checkpoint import Shape

    noise = np.random.default_rng(1).integers(0, 256, (6, 6, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels).resize((96, 72)) for pixels in noise]
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model, processor = random_llava(Shape(), "none", dtype, "cpu")
        model, answers = model.to(device), {}
        for way in ("rows", "slots", "slots, CUDA graph")[: 3 if device == "cuda" else 2]:
            generator = SharedPrefixGenerator(model, processor, PROMPTS, 40)
            generator.static, generator.graphs = way != "rows", way.endswith("graph")
            generator.end_ids = set(range(0, len(processor.tokenizer), 16))
            answers[way] = [caption for row in shared(generator, images, 4) for caption in row.values()]
            equal = statistics.mean(map(operator.eq, answers[way], answers["rows"]))
            lengths = {caption.n_tokens for caption in answers[way]}
            row = {"decoding": way, "precision": str(dtype)[6:], "as by rows": f"{equal:.0%}", "lengths": len(lengths)}
            yield row | {"right": yes(equal == 1 and len(lengths) > 1 or dtype != torch.float32)}


def training_twice(device: str, steps: int) -> Rows:
    """student/train.py: again, interrupted half way, and as a CUDA graph; differences from the first."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, images=12, side=64, dim=32)
        for precision in ("no", "bf16"):
            settings = {"max_steps": steps, "batch_size": 6, "patch_size": 32, "mixed_precision": precision, "lr": 1e-3,
                        "num_workers": 0, "val_every": 0, "ema_decay": 0.9, "log_every": 1}  # fmt: skip

            train = partial(trained, folder, device, settings)
            first, again = train("first"), train("again")
            train("resumed", stop_at_step=steps // 2)
            others = {"again": again, "interrupted": train("resumed")}
            if device == "cuda":
                others["CUDA graph"] = train("graph", cuda_graph=True)
            noise = (again[1] - first[1]).abs().max().item()
            for name, (losses, vector) in others.items():
                worst = (vector - first[1]).abs().max().item()
                loss = max(abs(a - b) / abs(b) for a, b in zip(losses, first[0], strict=True))
                row = {"trained": name, "precision": precision, "weights": f"{worst:.1e}", "loss": f"{loss:.1e}"}
                # A graph may pick other kernels, and Adam makes much of a gradient near zero: only losses are held to.
                yield row | {"right": yes(loss < 1e-2 if name == "CUDA graph" else worst <= 10 * noise)}


def trained(folder: Path, device: str, settings: dict[str, Any], name: str, **options: Any) -> tuple[list, Tensor]:
    """(losses of all steps, all published weights in one vector)."""
    out = folder / f"{settings['mixed_precision']}-{name}"
    run(folder, out, TOY_MODEL, device, **settings | options)
    weights = load_file(out / "model.safetensors").values()
    return [row["loss"] for row in log_rows(out)], torch.cat([tensor.flatten() for tensor in weights])
