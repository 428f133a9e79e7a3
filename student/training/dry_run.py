"""What a training run would do, without doing it: `student/train.py --dry-run`."""

from collections import Counter
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from student.data.pairs import Pairs
from student.data.sampler import BalancedBatches
from student.model import Student
from student.network.config import ModelConfig
from student.training.config import TrainConfig


def plan(
    config: TrainConfig, model: ModelConfig, pairs: Pairs, val: Pairs, priors: int, batches: BalancedBatches, step: int
) -> str:
    """The plan in words. `priors`: training rows that have one; `step`: where the run would start."""
    composition = batches.composition(0)
    shares = dict(zip(batches.names, composition, strict=True))
    rows = [("dataset", "domain", "task", "train", "val", "first batch", "passes")]
    given = batches.drawn_before(min(config.max_steps, 65536)) * max(1.0, config.max_steps / 65536)
    passes = dict(zip(batches.names, given, strict=True))
    val_counts = Counter(val.dataset)
    for name, members in pairs.by_dataset.items():
        one = members[0]
        share, times = shares.get(name, 0), passes.get(name, 0) / len(members)
        cells = (name, pairs.domain[one], pairs.task[one], len(members), val_counts[name], share, f"{times:.3g}")
        rows.append(tuple(str(cell) for cell in cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    parameters, activations = training_bytes(config, model, batches.parts)
    weights = ", ".join(f"{name} {weight:g}" for name, weight in config.losses.model_dump().items())
    steps = f"steps {step} to {config.max_steps}"
    if config.stop_at_step:
        steps += f", stopping at {config.stop_at_step}"
    if config.max_minutes:
        steps += f", for at most {config.max_minutes:g} min"
    processes = "1 process" if batches.parts == 1 else f"{batches.parts} processes"
    copies = 4 + bool(config.ema_decay)
    return "\n".join(
        [
            *table,
            f"priors: {priors} of {len(pairs)} training rows; the others are left out of the align loss",
            f"batch: {config.batch_size} crops of {config.patch_size} x {config.patch_size} over {processes} x "
            f"{config.grad_accumulation} micro-batches",
            f"{steps}; Adam, lr {config.lr:g} → {config.min_lr:g}, precision {config.mixed_precision}",
            f"losses: {weights}",
            f"student: {model.backbone}, {parameters / 1e6:.2f} M parameters",
            f"memory per process, about: {(copies * 4 * parameters + activations) / 2**30:.2f} GiB "
            f"(weights, gradients, Adam{', EMA' if config.ema_decay else ''}: {copies * 4 * parameters / 2**30:.2f}; "
            f"activations kept for the backward pass: {activations / 2**30:.2f})",
        ]
    )


def training_bytes(config: TrainConfig, model: ModelConfig, processes: int) -> tuple[int, int]:
    """(number of parameters, bytes of activations that one micro-batch keeps for its backward pass).

    Counted over a forward on fake tensors, which have shapes but no storage: exact for what autograd keeps, without
    the convolutions' workspaces.
    """
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # views share it; held, so that no other takes its address
        return tensor

    crops = max(1, config.batch_size // (config.grad_accumulation * processes))
    precision = torch.bfloat16 if config.mixed_precision != "no" else None
    with FakeTensorMode(), torch.autocast("cpu", precision, enabled=precision is not None):
        student = Student(model).train()
        own = {parameter.untyped_storage()._cdata for parameter in student.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            student(torch.empty(crops, 3, config.patch_size, config.patch_size), return_prompts=True)
        parameters = sum(parameter.numel() for parameter in student.parameters())
        activations = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
    return parameters, activations
