"""Train the student on an index and a caption release, with Accelerate.

    accelerate launch student/train.py                                  # as params.yaml says; goes on where it stopped
    accelerate launch student/train.py --dry-run                        # print the plan and exit
    accelerate launch student/train.py --set train.max_steps=2000 --set train.batch_size=8
    accelerate launch student/train.py --init-from artifacts/student-before     # fine-tune a student

Writes config.json, model.safetensors, README.md, log.jsonl, curves/ and checkpoints/ into paths.student.
SIGTERM and Ctrl-C save a checkpoint and exit; so does train.max_minutes. docs/training.md tells the rest.
"""

import argparse
import errno
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

# Python puts the folder of a script first on the path, and `import student` would find whatever checkout is installed.
if Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from student.params import ParamsError, add_params_arguments, read_params  # noqa: E402
from student.progress import progress  # noqa: E402
from student.training.config import TrainConfig  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

    from student.training.losses import Losses
    from student.training.setup import Job


def main(argv: list[str] | None = None) -> int:
    begun = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_params_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and exit")
    parser.add_argument("--init-from", metavar="DIR", help="start from the weights of this student (train.init_from)")
    args = parser.parse_args(argv)
    # Heavy imports wait until --help has been answered.
    from student.data.pairs import TrainDataError
    from student.training.checkpoints import CheckpointError
    from student.training.setup import open_job
    from student.training.stopping import TrainingStopped

    job = None
    try:
        job = open_job(read_params(args.params, args.overrides), args.init_from)
        if not args.dry_run:
            return train(job, begun)
        from student.training.dry_run import plan

        if int(os.environ.get("RANK", 0)) == 0:
            print(plan(job))
        return 0
    except (ParamsError, TrainDataError, CheckpointError, TrainingStopped) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    except Exception as error:  # torch, safetensors and trackers each have their own for a full disk
        out = Path(job.paths.student if job else "").absolute()
        there = next(folder for folder in (out, *out.parents) if folder.is_dir())
        if getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT) and shutil.disk_usage(there).free > 2**20:
            raise
        remedy = "free some space and start again: it resumes from the last checkpoint"
        print(f"train: {out}: the disk is full; {remedy} ({' '.join(str(error).split())[:200]})", file=sys.stderr)
        return 1


def lr_at(step: int, config: TrainConfig) -> float:
    """Learning rate of the update that follows `step` updates: linear warm-up, then a cosine to `min_lr`, or halves."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.halve_lr_at:
        return config.lr / 2 ** sum(step >= end for end in config.halve_lr_at)
    share = (step - config.warmup_steps) / (config.max_steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * share)) / 2


def train(job: "Job", begun: float) -> int:
    """Train to the last step, or until asked to stop; returns the exit code."""
    from student.training.cuda_graph import Recorded
    from student.training.log import words
    from student.training.run import Run, suspects

    config, run = job.config, Run(job, begun)
    if run.start >= run.last and run.written:
        run.say(f"already at step {run.start} of {config.max_steps}: nothing to do")
        return 0
    run.build()
    accelerator, done = run.accelerator, run.start
    model, optimizer, average = run.weights.model, run.weights.optimizer, run.weights.average

    def gradients(batches: "Iterable[dict[str, Tensor]]") -> "tuple[list[Losses], list[tuple[Tensor, Tensor]], Tensor]":
        """Losses of the micro-batches, their rows with the suspects among them, and the gradients' norm before they
        were clipped."""
        optimizer.zero_grad()
        parts, suspected = [], []
        for batch in batches:
            with accelerator.accumulate(model):
                restored, prompts = model(batch["lq"], return_prompts=True)
                losses = run.losses(batch, restored, prompts)
                accelerator.backward(losses.total)
            parts.append(losses)
            suspected.append((batch["row"], suspects(batch, restored)))
        return parts, suspected, accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)

    update = optimizer.step
    if config.cuda_graph:
        gradients, update = Recorded(gradients), Recorded(update)  # type: ignore[assignment]

    with run.stop, progress("train", run.last, run.start, shown=run.main) as advance:
        for step in range(run.start, run.last):
            # ---- one step: one update, from grad_accumulation micro-batches ----
            lapse, lr = time.monotonic(), lr_at(step, config)
            run.weights.set_lr(lr)
            parts, suspected, grad_norm = gradients(run.micro_batches(step))
            means, norm, stop = run.agree(parts, grad_norm)
            if run.is_good(step + 1, means, norm, suspected):
                update()
                if average:
                    average.update(step)
            done = step + 1
            run.step_seconds += time.monotonic() - lapse
            # ---- end of the step ----

            note = ""
            if done % config.log_every == 0 or done == config.max_steps:
                note = words(run.log_row(done, lr, means, norm))
            if run.val_rows and (done % config.val_every == 0 or done == config.max_steps) and run.validate(done):
                run.save(done)  # the best so far
            if done % config.save_every == 0:
                run.save(done)
            advance(1, note)
            if stop:
                break

        run.save(done)
        run.write_student(done)
    run.finish(done, begun)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while it loads, or the second time
        print(
            "train: stopped at once; start again to resume from the last checkpoint, if there is one", file=sys.stderr
        )
        sys.exit(130)
