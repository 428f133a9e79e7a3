"""One run in one process: network, optimiser, data and log, made from a `Job` and restored from its checkpoint."""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from student.data.cache import open_images
from student.data.dataset import PairDataset, whole
from student.machine import keep_freed_memory, use_all_cores
from student.network.prompts import Prompts
from student.training import cuda_graph
from student.training.checkpoints import Values, check_files, read_meta
from student.training.log import Row, RunLog
from student.training.losses import TERMS, Losses, compute_losses
from student.training.setup import Job, build_student, lock, make_accelerator, student_written, write_student
from student.training.stopping import StopRequest, TrainingStopped, ignore_signals
from student.training.validation import choose_rows, validate
from student.training.weights import TrainedWeights, whole_tensor


class Run:
    """Set up on construction; then `train.py` turns its crank.

    A step's randomness (dropout, selection noise) is seeded by (seed, step, process), its batch is a function of
    (seed, step), its learning rate of the step: besides weights, optimiser and average there is no state to restore.
    """

    def __init__(self, job: Job, begun: float):
        self.job, self.config, self.out = job, job.config, Path(job.paths.student)
        self.checkpoints, self.accelerator = job.checkpoints, make_accelerator(job)
        self.rank, self.main = self.accelerator.process_index, self.accelerator.is_main_process
        job.batches(0, self.rank, self.accelerator.num_processes)  # may refuse the number of processes
        self.stop = StopRequest(begun, self.config.max_minutes)
        # The main process looks, so that all agree: a network file system may show the others something older.
        found: list[Any] = [None, -math.inf, False]
        if self.main:
            self._lock = lock(self.out)
            if message := self.checkpoints.open():
                self.say(message)
            best = max(self.checkpoints.scores().values(), default=-math.inf)
            found = [self.checkpoints.latest(), best, student_written(job)]
        self.latest, self.best, self.written = broadcast_object_list(found)
        self.meta: Values = {"step": 0, "bad_steps": 0, "val_psnr": None}
        self.meta |= read_meta(self.latest) if self.latest else {}
        self.start, self.last = self.meta["step"], job.last_step
        self.saved = self.start if self.latest else -1
        self.bad_steps, self.bad_in_a_row = self.meta["bad_steps"], 0

    def build(self) -> None:
        """Network and data, restored from the latest checkpoint."""
        config, accelerator = self.config, self.accelerator
        student, cuda = build_student(self.job), accelerator.device.type == "cuda"
        if not cuda:
            keep_freed_memory()
            use_all_cores()
        if config.cuda_graph:
            cuda_graph.check(accelerator)
        self.weights = TrainedWeights(student, config, accelerator)
        if self.latest:
            check_files(self.latest, self.meta["sha256"])
            self.weights.restore(self.latest, self.meta["shards"])
        self.val = PairDataset(self.job.val, None, config.patch_size, config.seed)
        self.val_rows = choose_rows(self.val, config.val_images) if config.val_every else []
        panels = self.out / "panels" / self.checkpoints.folder.name
        self.log = RunLog(self.out, accelerator, self.latest, panels) if self.main else None
        identity = {k: v if isinstance(v, int | float) else str(v) for k, v in self.checkpoints.identity.items()}
        accelerator.init_trackers("train", identity)
        pairs, images = self.job.pairs, open_images(config.cache_images, self.job.pairs, config.cache_dir)
        dataset = PairDataset(
            pairs, self.job.release, config.patch_size, config.seed, config.augment, images, config.shuffle_priors
        )
        # Accelerate's own loader wrapper is not used: the sampler already gives each process its share.
        loader = DataLoader(
            dataset, batch_sampler=self.job.batches(self.start, self.rank, accelerator.num_processes),
            collate_fn=whole, num_workers=config.num_workers, worker_init_fn=ignore_signals, pin_memory=cuda,
        )  # fmt: skip
        self.batches = iter(loader)
        self.wait_seconds, self.step_seconds, self.logged = 0.0, 0.0, self.start

    def micro_batches(self, step: int) -> Iterator[dict[str, Tensor]]:
        """The micro-batches of a step, on the device; each seeds what is random in its forward pass."""
        for micro in range(self.config.grad_accumulation):
            begun = time.monotonic()
            try:
                with self.stop.waiting(self.config.data_timeout):
                    rows = next(self.batches)
            except TrainingStopped:
                if micro == 0 and self.accelerator.num_processes == 1:  # the others would wait for this one
                    self.save(step)
                raise
            batch = {name: rows.to(self.accelerator.device, non_blocking=True) for name, rows in rows.items()}
            if self.config.channels_last:
                batch["lq"] = batch["lq"].to(memory_format=torch.channels_last)
            self.wait_seconds += time.monotonic() - begun
            seed = np.random.SeedSequence([self.config.seed, step, micro, self.rank]).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(seed >> np.uint64(1)))
            yield batch

    def losses(self, batch: dict[str, Tensor], restored: Tensor, prompts: Prompts) -> Losses:
        values = {name: whole_tensor(values) for name, values in self.weights.pool_values.items()}
        return compute_losses(restored, prompts, batch, values, self.config, self.accelerator.gather)

    def agree(self, parts: list[Losses], grad_norm: Tensor) -> tuple[dict[str, float], float, bool]:
        """Mean losses over micro-batches and processes, the gradient's norm, and whether any process wants to stop.

        One exchange and one wait for the device a step: every process then takes the same decisions.
        """
        mine = torch.stack([torch.stack([part.total.detach(), *part.raw.values()]) for part in parts]).mean(0)
        wanted = mine.new_full((1,), float(self.stop.wanted()))  # filled there: a copy from here would wait
        means = self.accelerator.reduce(torch.cat([mine, wanted]), reduction="mean")
        *losses, wanted, norm = torch.cat([means, whole_tensor(grad_norm).reshape(1)]).tolist()
        return dict(zip(("loss", *parts[0].raw), losses, strict=True)), norm, wanted > 0

    def is_good(self, step: int, means: dict[str, float], norm: float, suspected: list[tuple[Tensor, Tensor]]) -> bool:
        """Whether the update may be made. Raises `TrainingStopped` after too many bad steps in a row."""
        # fp16: gradients overflow whenever the loss scale is tried too high; the scaler itself then skips the update.
        # A scale below 1 cannot overflow any more: then the gradients themselves are at fault.
        scaler = self.accelerator.scaler
        fine = math.isfinite(norm) or scaler is not None and scaler.get_scale() >= 1
        terms = [name for name, value in means.items() if not math.isfinite(value)]
        if fine and not terms:
            self.bad_in_a_row = 0
            return True
        self.bad_steps += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= self.config.max_bad_steps:
            what = f"loss terms {', '.join(terms)}" if terms else f"the gradient (norm {norm})"
            rows, bad = (torch.cat(parts) for parts in zip(*suspected, strict=True))
            images = [self.job.pairs.describe(row) for row in (rows[bad] if bad.any() else rows).tolist()]
            images = sorted(set(gather_object(images)))
            raise TrainingStopped(
                f"step {step}: {what} not finite, {self.bad_in_a_row} steps in a row (train.max_bad_steps); images: "
                f"{'; '.join(images)}; nothing was updated and the last checkpoint is good: look at these files, or "
                "lower train.lr"
            )
        return scaler is not None  # the scaler sees the gradients, skips the update, and lowers its scale

    def log_row(self, step: int, lr: float, losses: dict[str, float], norm: float) -> Row:
        """Log one step and return the row; rates are means since the row before."""
        weights, seconds = self.config.losses.model_dump(), max(self.step_seconds, 1e-9)
        images, self.logged = self.config.batch_size * (step - self.logged), step
        row: Row = {"step": step, "lr": lr, "loss": losses["loss"]}
        row |= {f"loss_{term}": losses.get(term) for term in TERMS}
        row["weighted"] = {term: weights[term] * losses[term] for term in TERMS if term in losses}
        row |= {"grad_norm": norm, "bad_steps": self.bad_steps}
        row["images_per_second"] = round(images / seconds, 3)
        row["data_wait_fraction"] = round(self.wait_seconds / seconds, 4)
        if self.accelerator.device.type == "cuda":
            row["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        self.wait_seconds = self.step_seconds = 0.0
        if self.log:
            self.log.write(row)
        return row

    def validate(self, step: int) -> bool:
        """Log validation scores, prompt usage and panels; True when this is the best so far."""
        weights = self.weights
        network = weights.model if weights.shards else weights.network.forward  # `forward`: not compiled for every size
        weights.model.eval()
        with weights.averaged():
            scores, usage, panels = validate(network, self.val, self.val_rows, self.config.val_crop, self.accelerator)
        weights.model.train()
        score = float(np.mean([score["psnr"] for score in scores.values()]))
        self.meta |= {"val_psnr": score, "val_step": step}
        if self.log:
            self.log.write({"step": step, "val": scores})
            self.log.write({"step": step, "usage": usage})
            self.log.images(step, panels)
        improved, self.best = score > self.best, max(score, self.best)
        return improved

    def save(self, step: int) -> None:
        """A checkpoint after `step` steps, unless there is one."""
        if step == self.saved:
            return
        score = self.meta["val_psnr"] if self.meta.get("val_step") == step else None
        meta = {"bad_steps": self.bad_steps, "val_psnr": score, "shards": self.weights.shards}
        writers = [self.weights.save, *([self.log.save] if self.log else [])]
        self.checkpoints.save(step, meta, writers, self.config.keep_last, self.accelerator)
        self.saved = step

    def write_student(self, step: int) -> None:
        """The weights (their average, if there is one) and the model card into `paths.student`."""
        weights, config = self.weights.whole(), self.config
        if self.log:
            crops = f"{config.batch_size} crops, {config.patch_size} x {config.patch_size}"
            details = {
                "Trained": f"{step} of {config.max_steps} steps of {crops}",
                "Data": ", ".join(f"{name} ({len(rows)})" for name, rows in self.job.pairs.by_dataset.items()),
                "Weights": f"moving average, decay {config.ema_decay}" if config.ema_decay else "as trained",
            }
            for name, score in self.log.newest_scores().items():
                details[f"Validation in training, {name}"] = f"{score['psnr']:.2f} dB ({score['psnr_gain']:+.2f})"
            write_student(weights, self.job, details)
        self.accelerator.wait_for_everyone()

    def finish(self, step: int, begun: float) -> None:
        """Close the trackers and print the one line that sums the run up."""
        self.accelerator.end_training()
        scores = self.log.newest_scores() if self.log else {}
        gain = f", validation {np.mean([s['psnr_gain'] for s in scores.values()]):+.2f} dB" if scores else ""
        why = (
            f" (stopped by {self.stop.reason}; start again to resume)" if self.stop.reason and step < self.last else ""
        )
        bad = f", {self.bad_steps} bad steps skipped" if self.bad_steps else ""
        minutes = (time.monotonic() - begun) / 60
        self.say(f"step {step} of {self.config.max_steps}{gain}{bad} in {minutes:.1f} min → {self.out}{why}")

    def say(self, message: str) -> None:
        if self.main:
            print(f"train: {message}", flush=True)


def suspects(batch: dict[str, Tensor], restored: Tensor) -> Tensor:
    """Which rows [B] have an input, target, prior or result that is not finite."""
    parts = (batch["lq"], batch["gt"], batch["prior"], restored.detach())
    return ~torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)
