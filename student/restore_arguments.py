"""The command line of `python -m student.restore`."""

import argparse


def arguments(argv: list[str] | None, description: str) -> argparse.Namespace:
    """Parse `argv`; ends the process with a usage message for what cannot be meant."""
    parser = argparse.ArgumentParser(
        prog="python -m student.restore", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
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
