"""What a training run would do, without doing it: `student/train.py --dry-run`."""

import os
from collections import Counter

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from student.model import Student
from student.network.config import ModelConfig
from student.training.checkpoints import read_meta
from student.training.config import TrainConfig
from student.training.setup import Job


def plan(job: Job) -> str:
    """The plan in words."""
    config, pairs, latest = job.config, job.pairs, job.checkpoints.latest()
    processes = int(os.environ.get("WORLD_SIZE", 1))
    batches = job.batches(0, 0, processes)
    shares = dict(zip(batches.names, batches.composition(0), strict=True))
    given = batches.drawn_before(min(config.max_steps, 65536)) * max(1.0, config.max_steps / 65536)
    passes = dict(zip(batches.names, given, strict=True))
    val = Counter(job.val.dataset)
    rows = [("dataset", "domain", "task", "train", "val", "first batch", "passes")]
    for name, members in pairs.by_dataset.items():
        domain, task, times = pairs.domain[members[0]], pairs.task[members[0]], passes.get(name, 0) / len(members)
        rows.append((name, domain, task, str(len(members)), str(val[name]), str(shares.get(name, 0)), f"{times:.3g}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    priors = 0 if job.release is None else int(np.sum(job.release.lookup(list(pairs.gt_sha256))[1]))
    steps = f"steps {read_meta(latest)['step'] if latest else 0} to {config.max_steps}"
    steps += f", stopping at {config.stop_at_step}" if config.stop_at_step else ""
    steps += f", for at most {config.max_minutes:g} min" if config.max_minutes else ""
    rates = (
        f"{config.lr:g}, halved at {list(config.halve_lr_at)}"
        if config.halve_lr_at
        else f"{config.lr:g} → {config.min_lr:g}"
    )
    parameters, activations = training_bytes(config, job.model, processes)
    state = (4 + bool(config.ema_decay)) * 4 * parameters
    lines = [
        *("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
        f"priors: {priors} of {len(pairs)} training rows; the others are left out of the align loss",
        f"batch: {config.batch_size} crops of {config.patch_size} x {config.patch_size} over {processes} "
        f"process{'es' * (processes > 1)} x {config.grad_accumulation} micro-batches",
        f"{steps}; {config.optimizer}, lr {rates}, precision {config.mixed_precision}",
        "losses: " + ", ".join(f"{name} {weight:g}" for name, weight in config.losses.model_dump().items()),
        f"student: {job.model.backbone}, {parameters / 1e6:.2f} M parameters",
        f"memory per process, about: {(state + activations) / 2**30:.2f} GiB "
        f"(weights, gradients, Adam{', EMA' if config.ema_decay else ''}: {state / 2**30:.2f}; "
        f"activations kept for the backward pass: {activations / 2**30:.2f})",
    ]
    return "\n".join(lines)


def training_bytes(config: TrainConfig, model: ModelConfig, processes: int) -> tuple[int, int]:
    """(number of parameters, bytes of activations that one micro-batch keeps for its backward pass).

    Counted over a forward on fake tensors, which have shapes but no storage: exact for what autograd keeps, without
    the convolutions' workspaces.
    """
    kept: dict[int, torch.UntypedStorage] = {}

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
