"""Restore images: a file, a folder, a glob, or standard input, each written as the kind of file that it was.

    python -m student.restore photo.jpg restored.jpg
    python -m student.restore scans/ restored/ --model DIR_OR_HUB_ID            # recursive, structure kept
    python -m student.restore 'in/*.png' out/ --model DIR --tile 512 --explain
    python -m student.restore small.png large.png --scale 4                    # enlarged first, and then restored
    cat rainy.png | python -m student.restore - - --model DIR > clear.png

PNG, JPEG, TIFF, WebP, BMP, PPM, GIF, AVIF, JPEG 2000: depth, gray, alpha, EXIF and ICC profile kept; DICOM and NIfTI
with the extra `medical`. Where a type does not say which number is black and white, one line tells what was taken.
Finished outputs are left alone, so the same command resumes after a stop; --overwrite recreates them.
Exit code: 0 all restored, 1 some could not be (they are named), 2 nothing could start, 130 stopped by Ctrl-C.
"""

import argparse
import os
import signal
import sys
from typing import Any

from student.restoration.paths import RestorePathError, check_writable, plan_jobs
from student.restoration.run import Run


def main(argv: list[str] | None = None) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # docs/decisions.md, before torch is imported
    args = _arguments(argv)
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
    run = Run(args, plan, pending, _stop_between_files)
    skipped = f", {plan.skipped_words}" if plan.skipped else ""
    if args.dry_run:
        wanted = set(pending)
        for job in jobs:
            print(f"{job.name} → {job.target or 'standard output'}{'' if job in wanted else '   (exists, kept)'}")
        print(f"would restore {len(pending)} of {len(jobs)} images with {args.model or 'the shipped student'}{skipped}")
        return 0
    if not pending:
        without = f", {n} without an explanation" if (n := run.unexplained()) else ""
        exist = f"restored 0 images: all {len(jobs)} outputs exist{without} (--overwrite recreates them)"
        print(exist + skipped, file=sys.stderr)
        return 0
    return run.finish()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parse `argv`; ends the process with a usage message for what cannot be meant."""
    parser = argparse.ArgumentParser(
        prog="python -m student.restore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", help="a file, a folder, a quoted glob, or - for standard input")
    parser.add_argument("output", help="a file for a file, a folder otherwise, or - for standard output")
    parser.add_argument("--model", metavar="DIR|ID", help="default: the student that comes along, student/mini")
    parser.add_argument("--strength", default=1.0, type=float, help="0 leaves the image, 1 (default) restores it")
    parser.add_argument(
        "--scale", default=1, type=int, metavar="N",
        help="enlarge the image N times first (bicubic): for super-resolution of 8-bit pictures, written upright",
    )  # fmt: skip
    parser.add_argument("--tile", default="auto", type=_tile, help="auto (from free memory), off, or pixels")
    parser.add_argument("--overlap", default=32, type=int, help="pixels that neighbouring tiles share (default: 32)")
    parser.add_argument(
        "--refine", default=1, type=int, metavar="N",
        help="how often to go over all tiles first, so that they agree with the image restored whole (default: 1; "
        "0 is twice as fast, 2 practically exact)",
    )  # fmt: skip
    parser.add_argument("--batch", default=1, type=int, help="tiles a forward (default: 1; more for a large GPU)")
    parser.add_argument(
        "--range", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="what is black and white, beyond 8 bits, such as 0 10000 (default: as type, tags or samples say)",
    )  # fmt: skip
    parser.add_argument(
        "--bands", nargs="+", type=int, metavar="N",
        help="the bands of a TIFF, from 1, that are red, green and blue, or one for gray; the others are copied",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="others: for GPUs"
    )
    parser.add_argument("--overwrite", action="store_true", help="restore again what has an output already")
    parser.add_argument("--dry-run", action="store_true", help="list what would be written and exit")
    parser.add_argument("--explain", action="store_true", help="write OUTPUT.explain.json: chosen prompts, and why")
    parser.add_argument("--release", default="artifacts/caption_shards", metavar="DIR", help="captions for --explain")
    args = parser.parse_args(argv)
    if args.batch < 1 or args.overlap < 0 or args.refine < 0:
        parser.error("--batch must be at least 1, --overlap and --refine at least 0")
    if args.range and not args.range[0] < args.range[1]:
        parser.error("--range LOW HIGH: LOW must be below HIGH")
    if args.bands and (len(args.bands) not in (1, 3) or min(args.bands) < 1 or len(set(args.bands)) != len(args.bands)):
        parser.error("--bands: name one band or three different ones, counted from 1")
    if not 1 <= args.scale <= 16:
        parser.error(f"--scale {args.scale} must be from 1 to 16")
    if not 0 <= args.strength <= 1:
        parser.error(f"--strength {args.strength} must be from 0 to 1")
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


def _stop_at_once(*_: Any) -> None:
    """Ctrl-C while modules are imported: as an exception it would surface anywhere in them, or be swallowed there."""
    os.write(sys.stderr.fileno(), b"restore: stopped before the first image\n")
    _end_by_ctrl_c()


def _stop_between_files() -> None:
    """From now on Ctrl-C, and a polite kill too, is the exception that `Run.finish` waits for."""
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
