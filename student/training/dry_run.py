"""What a training run would do, without doing it: `student/train.py --dry-run`."""

import os
from collections import Counter

import numpy as np
import torch

from student.training.checkpoints import read_meta
from student.training.setup import Job
from student.training.step_cost import rehearse, seconds_here
from student.training.weights import PRECISIONS


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
    rates = f"{config.lr:g}" + (
        f", halved at {[*halved]}" if (halved := config.halve_lr_at) else f" → {config.min_lr:g}"
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parameters, activations, cost = rehearse(config, job.model, processes, device)
    seconds = seconds_here(cost, device, PRECISIONS.get(config.mixed_precision, torch.float32))
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
        f"a step: {cost.kernels} kernels, {cost.bytes / 1e9:.2f} GB moved, {cost.operations / 1e12:.3g} T operations "
        "in products and convolutions, before any compiler fuses them",
        f"on this {device.type} at least "
        + ", ".join(f"{1e3 * time:.0f} ms for {what}" for what, time in seconds.items())
        + f": bound by {max(seconds, key=seconds.__getitem__)}",
    ]
    return "\n".join(lines)
