"""Restore images: a file, a folder, a glob, or standard input, each written as the kind of file that it was.

    python -m student.restore photo.jpg restored.jpg
    python -m student.restore scans/ restored/ --model DIR_OR_HUB_ID            # recursive, structure kept
    python -m student.restore 'in/*.png' out/ --model DIR --tile 512 --explain
    python -m student.restore small.png large.png --scale 4                    # enlarged first, and then restored
    cat rainy.png | python -m student.restore - - --model DIR > clear.png

PNG, JPEG, TIFF, WebP, BMP, PPM, GIF, AVIF, JPEG 2000: depth, gray, alpha, EXIF and ICC profile kept; DICOM and NIfTI
with the extra `medical`. Where a type does not say which number is black and white, one line tells what was taken.
Finished outputs are left alone, so the same command goes on after a stop; --overwrite makes them anew.
Exit code: 0 all restored, 1 some could not be (they are named), 2 nothing could start, 130 stopped by Ctrl-C.
"""

import argparse
import errno
import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from student.progress import progress
from student.restoration.paths import Job, Plan, RestorePathError, check_writable, enlarged, explanation_of, plan_jobs
from student.restore_arguments import arguments


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # docs/decisions.md, before torch is imported
    args = arguments(argv, __doc__)
    try:
        plan = plan_jobs(args.input, args.output)
        jobs = plan.jobs
        pending = [job for job in jobs if args.overwrite or job.target is None or not os.path.exists(job.target)]
        check_writable(pending)
    except RestorePathError as error:
        print(f"restore: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder on the way that may not be entered
        print(f"restore: {error.filename}: {error.strerror or error}", file=sys.stderr)
        return 2
    run = _Run(args, plan, pending)
    skipped = f", {plan.skipped_words}" if plan.skipped else ""
    if args.dry_run:
        wanted = set(pending)
        for job in jobs:
            print(f"{job.name} → {job.target or 'standard output'}{'' if job in wanted else '   (exists, kept)'}")
        print(f"would restore {len(pending)} of {len(jobs)} images with {args.model or 'the shipped student'}{skipped}")
        return 0
    if not pending:
        without = f", {n} without an explanation" if (n := run.unexplained()) else ""
        exist = f"restored 0 images: all {len(jobs)} outputs exist{without} (--overwrite makes them anew)"
        print(exist + skipped, file=sys.stderr)
        return 0
    return run.finish()


@dataclass
class _Run:
    """One call of the command: counts as it goes, ends with one line."""

    args: argparse.Namespace
    plan: Plan
    pending: list[Job]
    done: int = 0
    pixels: int = 0

    def finish(self) -> int:
        self.failed: list[str] = []
        self.told: Counter = Counter()
        started = time.perf_counter()
        try:
            code = self._load_and_restore()
        except KeyboardInterrupt:
            print("restore: stopped; the outputs above are whole, the same command goes on", file=sys.stderr)
            code = 130
        self._summary(time.perf_counter() - started)
        return code or (1 if self.failed else 0)

    def unexplained(self) -> int:
        """How many outputs are kept, and stay without the explanation that was asked for."""
        if not self.args.explain:
            return 0
        kept = set(self.plan.jobs) - set(self.pending)
        return sum(not os.path.exists(explanation_of(job.target)) for job in kept)

    def _load_and_restore(self) -> int:
        from student.restoration.restorer import ABOUT_SHIPPED, RestoreError, Restorer, load_student

        args = self.args
        if args.model is None:
            print(f"restore: {ABOUT_SHIPPED}", file=sys.stderr)
        try:
            student = load_student(args.model)
            settings = (args.device, args.dtype, args.tile, args.overlap, args.batch, args.refine, args.strength)
            restorer = Restorer(student, *settings)
            if restorer.device.type == "cpu" and args.dtype != "float32":
                slow = f"--dtype {args.dtype} can be over 20 times as slow on a CPU; use --dtype float32"
                print(f"restore: warning: {slow}", file=sys.stderr)
            self.explainer = self._explainer(restorer) if args.explain else None
            _stop_between_files()
            self._restore_all(restorer)
        except RestoreError as error:
            print(f"restore: {error}", file=sys.stderr)
            return 2
        return 0

    def _explainer(self, restorer: Any) -> Any:
        from student.restoration.explain import Explainer

        explainer = Explainer(restorer.student, self.args.release)
        if explainer.missing:
            print(f"restore: warning: explanations without captions: {explainer.missing}", file=sys.stderr)
        return explainer

    def _restore_all(self, restorer: Any) -> None:
        begun = time.perf_counter()
        with progress("restoring", len(self.pending)) as advance:
            for job in self.pending:
                reason = self._restore_one(restorer, job, lambda share: advance(0, within=share))
                if reason is not None:
                    self.failed.append(job.name)
                    print(f"restore: {job.name}: {reason}", file=sys.stderr)
                advance(1, f"{self.pixels / 1e6 / (time.perf_counter() - begun):.2f} Mpx/s")

    def _restore_one(self, restorer: Any, job: Job, within: Any) -> str | None:
        """Restore one image; returns the reason when it cannot be, and raises `RestoreError` when none can be."""
        import numpy as np

        from student.images.files import read_picture
        from student.images.medical import own_suffix
        from student.images.picture import ImageFileError
        from student.images.sample_values import given_range
        from student.restoration.restorer import RestoreError

        span = given_range(*self.args.range) if self.args.range else None
        bands = [band - 1 for band in self.args.bands or ()]
        try:
            data, suffix = job.read(), job.output_suffix
            if self.args.scale > 1:  # a PNG from now on, whatever the file was
                data, suffix = enlarged(data, self.args.scale), job.target.suffix.lower() if job.target else ""
            picture = read_picture(data, job.name, own_suffix(data, job.name, suffix), span, bands)
            for note in picture.notes:
                kind = re.sub(r"-?\d[\d.e+-]*", "...", note)
                self.told[kind] += 1
                if self.told[kind] == 1:  # the others are counted
                    print(f"restore: {job.name}: {note}", file=sys.stderr)
            slices, restored, count = picture.rgb, np.empty_like(picture.rgb), len(picture.rgb)
            for i, rgb in enumerate(slices):
                share = lambda tile, tiles, i=i: within((i + tile / tiles) / count)  # noqa: E731
                result = restorer(rgb.transpose(2, 0, 1), on_tile=share)
                restored[i] = result.image.transpose(1, 2, 0)
                if i == count // 2:
                    middle = result  # the one that is explained: the ends of a volume are often empty
            data = picture.encode(restored)
        except (ImageFileError, RestoreError) as error:
            return str(error)
        except MemoryError:
            return "not enough memory to decode it"
        except OSError as error:
            return error.strerror or str(error)
        except Exception as error:  # what encoders and devices raise, beside the above, is one image's failure too
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if (reason := self._write(job, data, middle, count)) is not None:
            return reason
        self.done += 1
        self.pixels += slices[..., 0].size
        return None

    def _write(self, job: Job, data: bytes, explained: Any, slices: int) -> str | None:
        """Write one output; returns the reason when it cannot be, and raises `RestoreError` when none can be."""
        from student.restoration.restorer import RestoreError

        target = job.target or "standard output"
        try:
            job.write(data)
            if self.explainer:
                target = explanation_of(job.target)
                self.explainer.write(job.target, explained.prompts, explained.tiles, slices)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RestoreError(f"{target}: the disk is full; free some space and run the same command") from None
            if error.errno == errno.EPIPE:
                raise RestoreError("whoever read standard output went away") from None
            return f"cannot write {target}: {error.strerror or error}"
        except Exception as error:  # a damaged release, which the explanation reads
            return f"cannot explain it: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return None

    def _summary(self, seconds: float) -> None:
        kept = len(self.plan.jobs) - len(self.pending)
        without = f" ({n} without an explanation: --overwrite makes them anew)" if (n := self.unexplained()) else ""
        parts = [f"restored {self.done} of {len(self.pending)} images"]
        parts += [f"kept {kept} that exist{without}"] if kept else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [self.plan.skipped_words] if self.plan.skipped else []
        parts += [f"{n} of them: {kind}" for kind, n in self.told.items() if n > 1]
        parts.append(f"{self.pixels / 1e6:.2f} Mpx in {seconds:.1f} s")
        target = self.args.output if self.args.output != "-" else "standard output"
        print(f"{', '.join(parts)} → {target}", file=sys.stderr)


def _stop_at_once(*_: Any) -> None:
    """Ctrl-C while modules are imported: as an exception it would surface anywhere in them, or be swallowed there."""
    os.write(sys.stderr.fileno(), b"restore: stopped before the first image\n")
    _end_by_ctrl_c()


def _stop_between_files() -> None:
    """From now on Ctrl-C, and a polite kill too, is the exception that `_Run.finish` waits for."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is _stop_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_by_ctrl_c() -> None:
    """End as a process does that Ctrl-C ended, so that a shell loop around it ends too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop_at_once)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background ignores it
        signal.signal(signal.SIGINT, _stop_at_once)
    code = main()
    if code == 130:
        _end_by_ctrl_c()
    sys.exit(code)
