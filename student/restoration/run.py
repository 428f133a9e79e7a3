"""One call of student.restore: image after image, each written or named with the reason. Imports nothing heavy."""

import argparse
import errno
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from student.images.workers import READ_SECONDS, ImageWorkers, try_to_read
from student.progress import progress
from student.restoration.paths import Job, Plan, enlarged, explanation_of

if TYPE_CHECKING:
    from student.restoration.explain import Explainer
    from student.restoration.restorer import Restored, Restorer


@dataclass
class Run:
    """One call of the command: counts as it goes, ends with one line."""

    args: argparse.Namespace
    plan: Plan
    pending: list[Job]
    loaded: Callable[[], None]
    """Called when the model is loaded, before the first image."""
    done: int = 0
    pixels: int = 0

    def finish(self) -> int:
        self.failed: list[str] = []
        self.told: Counter = Counter()
        started = time.perf_counter()
        try:
            with ImageWorkers(1, READ_SECONDS) as self.worker:  # before torch: a fork server takes what is loaded along
                code = self._load_and_restore()
        except KeyboardInterrupt:
            print("restore: stopped; the outputs above are whole, the same command resumes", file=sys.stderr)
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
            self.loaded()
            self._restore_all(restorer)
        except RestoreError as error:
            print(f"restore: {error}", file=sys.stderr)
            return 2
        return 0

    def _explainer(self, restorer: "Restorer") -> "Explainer":
        from student.restoration.explain import Explainer
        from student.restoration.restorer import SHIPPED

        explainer = Explainer(restorer.student, self.args.release, str(self.args.model or SHIPPED))
        if explainer.missing:
            print(f"restore: warning: explanations without captions: {explainer.missing}", file=sys.stderr)
        return explainer

    def _restore_all(self, restorer: "Restorer") -> None:
        begun = time.perf_counter()
        with progress("restoring", len(self.pending)) as advance:
            for job in self.pending:
                reason = self._restore_one(restorer, job, lambda share: advance(0, within=share))
                if reason is not None:
                    self.failed.append(job.name)
                    print(f"restore: {job.name}: {reason}", file=sys.stderr)
                advance(1, f"{self.pixels / 1e6 / (time.perf_counter() - begun):.2f} Mpx/s")

    def _restore_one(self, restorer: "Restorer", job: Job, within: Callable[[float], None]) -> str | None:
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
            try_to_read(self.worker, data, job.name, "", span, bands)
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

    def _write(self, job: Job, data: bytes, explained: "Restored", slices: int) -> str | None:
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
        without = f" ({n} without an explanation: --overwrite recreates them)" if (n := self.unexplained()) else ""
        parts = [f"restored {self.done} of {len(self.pending)} images"]
        parts += [f"kept {kept} that exist{without}"] if kept else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts += [self.plan.skipped_words] if self.plan.skipped else []
        parts += [f"{n} of them: {kind}" for kind, n in self.told.items() if n > 1]
        parts.append(f"{self.pixels / 1e6:.2f} Mpx in {seconds:.1f} s")
        target = self.args.output if self.args.output != "-" else "standard output"
        print(f"{', '.join(parts)} → {target}", file=sys.stderr)
