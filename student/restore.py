"""Restore images: a file, a folder, a glob, or standard input, each written as the kind of file that it was.

    python -m student.restore photo.jpg restored.jpg --model artifacts/student
    python -m student.restore scans/ restored/ --model DIR_OR_HUB_ID            # recursive, structure kept
    python -m student.restore 'in/*.png' out/ --model DIR --tile 512 --explain
    cat rainy.png | python -m student.restore - - --model DIR > clear.png

PNG, JPEG, TIFF, WebP and BMP of 8 and 16 bits, gray, alpha, EXIF and ICC profile kept; DICOM and NIfTI with the extra
`medical`. Finished outputs are left alone, so the same command goes on after a stop; --overwrite makes them anew.
Exit code: 0 all restored, 1 some could not be (they are named), 2 nothing could start, 130 stopped by Ctrl-C.
"""

import argparse
import errno
import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

from student.restore_paths import Job, RestorePathError, plan_jobs


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # docs/decisions.md, before torch is imported
    args = _arguments(argv)
    try:
        jobs = plan_jobs(args.input, args.output)
    except RestorePathError as error:
        print(f"restore: {error}", file=sys.stderr)
        return 2
    pending = [job for job in jobs if args.overwrite or job.target is None or not job.target.exists()]
    if args.dry_run:
        for job in jobs:
            print(f"{job.name} → {job.target or 'standard output'}{'' if job in pending else '   (exists, kept)'}")
        print(f"would restore {len(pending)} of {len(jobs)} images with {args.model}")
        return 0
    if not pending:
        print(f"restored 0 images: all {len(jobs)} outputs exist (--overwrite makes them anew)", file=sys.stderr)
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill ends like Ctrl-C: nothing half-written
    return _Run(args, jobs, pending).finish()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m student.restore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help="a file, a folder, a quoted glob, or - for standard input")
    parser.add_argument("output", help="a file for a file, a folder otherwise, or - for standard output")
    parser.add_argument("--model", default="artifacts/student", metavar="DIR|ID", help="default: artifacts/student")
    parser.add_argument("--tile", default="auto", type=_tile, help="auto (from free memory), off, or pixels")
    parser.add_argument("--overlap", default=32, type=int, help="pixels that neighbouring tiles share (default: 32)")
    parser.add_argument("--batch", default=1, type=int, help="tiles a forward (default: 1; more for a large GPU)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--overwrite", action="store_true", help="restore again what has an output already")
    parser.add_argument("--dry-run", action="store_true", help="list what would be written and exit")
    parser.add_argument("--explain", action="store_true", help="write OUTPUT.explain.json: chosen prompts, and why")
    parser.add_argument("--release", default="artifacts/caption_shards", metavar="DIR", help="captions for --explain")
    args = parser.parse_args(argv)
    if args.batch < 1 or args.overlap < 0:
        parser.error("--batch must be at least 1 and --overlap at least 0")
    if args.explain and args.output == "-":
        parser.error("--explain needs a file to stand beside; name an output file")
    return args


def _tile(text: str) -> str | int:
    if text in ("auto", "off"):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither auto, off nor a number of pixels") from None


@dataclass
class _Run:
    """One call of the command: counts as it goes, ends with one line."""

    args: argparse.Namespace
    jobs: list[Job]
    pending: list[Job]
    done: int = 0
    pixels: int = 0

    def finish(self) -> int:
        from student.restore_engine import RestoreError, Restorer, load_student

        self.failed: list[str] = []
        started, code = time.perf_counter(), 0
        try:
            args = self.args
            student = load_student(args.model)
            restorer = Restorer(student, args.device, args.dtype, args.tile, args.overlap, args.batch)
            self.explainer = self._explainer(restorer) if args.explain else None
            self._restore_all(restorer)
        except RestoreError as error:
            print(f"restore: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            print("restore: stopped; the outputs above are whole, the same command goes on", file=sys.stderr)
            code = 130
        self._summary(time.perf_counter() - started)
        return code or (1 if self.failed else 0)

    def _explainer(self, restorer: Any) -> Any:
        from student.explain import Explainer

        return Explainer(restorer.student, self.args.release)

    def _restore_all(self, restorer: Any) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
        )
        console = Console(stderr=True)  # standard output may be the picture
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
            bar = progress.add_task("restoring", total=len(self.pending), rate="")
            begun = time.perf_counter()
            for number, job in enumerate(self.pending):
                within = lambda share, number=number: progress.update(bar, completed=number + share)  # noqa: E731
                reason = self._restore_one(restorer, job, within)
                if reason is not None:
                    self.failed.append(job.name)
                    progress.console.print(f"restore: {job.name}: {reason}", markup=False, soft_wrap=True)
                speed = self.pixels / 1e6 / (time.perf_counter() - begun)
                progress.update(bar, completed=number + 1, rate=f"{speed:.2f} Mpx/s")

    def _restore_one(self, restorer: Any, job: Job, within: Any) -> str | None:
        """Restore one image; returns the reason when it cannot be, and raises `RestoreError` when none can be."""
        import numpy as np
        from PIL import Image

        from student.image_files import ImageFileError, read_picture
        from student.restore_engine import RestoreError

        Image.MAX_IMAGE_PIXELS = None  # scans of any size are what tiles are for; memory is checked instead
        try:
            picture = read_picture(job.read(), job.name, job.output_suffix)
            slices, restored, count = picture.rgb, np.empty_like(picture.rgb), len(picture.rgb)
            for i, rgb in enumerate(slices):
                share = lambda tile, tiles, i=i: within((i + tile / tiles) / count)  # noqa: E731
                result = restorer(rgb.transpose(2, 0, 1), on_tile=share)
                restored[i] = result.image.transpose(1, 2, 0)
            job.write(picture.encode(restored))
            if self.explainer:
                self.explainer.write(job.target, result.prompts, result.tiles)
        except (ImageFileError, RestoreError) as error:
            return str(error)
        except MemoryError:
            return "not enough memory to decode it"
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RestoreError(
                    f"{job.target}: the disk is full; free some space and run the same command"
                ) from None
            if error.errno == errno.EPIPE:
                raise RestoreError("whoever read standard output went away") from None
            return error.strerror or str(error)
        except Exception as error:  # what encoders and devices raise, beside the above, is one image's failure too
            return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self.done += 1
        self.pixels += slices[..., 0].size
        return None

    def _summary(self, seconds: float) -> None:
        kept = len(self.jobs) - len(self.pending)
        parts = [f"restored {self.done} of {len(self.pending)} images"]
        parts += [f"kept {kept} that exist"] if kept else []
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        parts.append(f"{self.pixels / 1e6:.2f} Mpx in {seconds:.1f} s")
        target = self.args.output if self.args.output != "-" else "standard output"
        print(f"{', '.join(parts)} → {target}", file=sys.stderr)


if __name__ == "__main__":
    code = main()
    if code == 130:  # end as a process does that Ctrl-C ended, so that a shell loop around it ends too
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)
