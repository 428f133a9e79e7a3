"""Preparations that papers leave to the reader, each seeded and resumable: a file that is there is not made again.

bicubic   IN OUT   x4 down and up by MATLAB's antialiased bicubic kernel: inputs of super-resolution, at gt size
enlarge   IN OUT   x4 up alone: low-resolution images as data sets ship them → inputs at gt size
crop      IN OUT   the right and lower edge cut off, to sides that are multiples of the scale
noise     IN OUT   stored noisy test set: noise x sigma, clipped to 0-255, truncated, seeded per file name
patches   IN OUT   large images cut into squares
slices    IN OUT   NIfTI and DICOM volumes → 16-bit PNG slices, with a stated window
"""

import argparse
import io
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.indexing.folders import walk
from pipeline.params import load_all
from pipeline.preparing.config import PrepareConfig
from pipeline.preparing.volumes import VOLUMES, VolumeError, slices_of
from student.data.degradations import DegradationSpec, degrade
from student.data.resize import enlarge as large
from student.data.resize import resize_integers
from student.files import write_file
from student.images import png16
from student.images.files import read_still
from student.images.formats import STILLS, is_image_name
from student.images.picture import ImageFileError, read_file, upright
from student.params import ParamsError, add_params_arguments
from student.progress import progress

EXAMPLES = """examples:
  python -m pipeline.prepare bicubic DF2K/train DF2K/train_x4_bicubic
  python -m pipeline.prepare crop Set14 Set14_mod4
  python -m pipeline.prepare enlarge DIV2K/LR_x2 DIV2K/LR_x2_enlarged --set prepare.scale=2
  python -m pipeline.prepare noise CBSD68 CBSD68_sigma50 --set prepare.sigma=50
  python -m pipeline.prepare patches DIV2K/train DIV2K/train_patches --set prepare.patch=480 --set prepare.stride=240
  python -m pipeline.prepare slices IXI/T2 MRI/HQ_png --set prepare.step=2
  python -m pipeline.prepare slices CT/dicom CT/HQ_png --set 'prepare.window=[-160, 240]'
"""

Output = tuple[Path, bytes]


class PrepareError(ValueError):
    """One input cannot be prepared; names the file and the reason."""


def bicubic(source: Path, target: Path, config: PrepareConfig) -> Iterator[Output]:
    """Down and up by `scale`; the sides of the image must be multiples of it, as in every published table."""
    image, scale = _read(source), config.scale
    height, width = image.shape[:2]
    if height % scale or width % scale:
        raise PrepareError(f"{source}: {width}x{height} is no multiple of {scale}; prepare crop first")
    yield target.with_suffix(".png"), _png(large(resize_integers(image, height // scale, width // scale), scale))


def enlarge(source: Path, target: Path, config: PrepareConfig) -> Iterator[Output]:
    """By `scale`, in the image's own depth: as the degradation `bicubic` enlarges."""
    yield target.with_suffix(".png"), _png(large(_read(source), config.scale))


def crop(source: Path, target: Path, config: PrepareConfig) -> Iterator[Output]:
    """To multiples of `scale`, as published test sets are cropped."""
    image = _read(source)
    height, width = (side // config.scale * config.scale for side in image.shape[:2])
    if not height or not width:
        raise PrepareError(f"{source}: {image.shape[1]}x{image.shape[0]} is smaller than {config.scale} pixels")
    yield target.with_suffix(".png"), _png(image[:height, :width])


def noise(source: Path, target: Path, config: PrepareConfig) -> Iterator[Output]:
    """The same bytes for the same file name, sigma and seed, wherever they are made."""
    seed = zlib.crc32(os.fsencode(source.name)) ^ config.seed
    spec = DegradationSpec(kind="gaussian_noise", sigma=config.sigma)
    yield target.with_suffix(".png"), _png(_degraded(source, spec, seed))


def patches(source: Path, target: Path, config: PrepareConfig) -> Iterator[Output]:
    """Squares named NAME_sROW_COLUMN; images smaller than one are kept whole."""
    image = _read(source)
    rows, columns = (_starts(side, config.patch, config.stride) for side in image.shape[:2])
    for row, top in enumerate(rows):
        for column, left in enumerate(columns):
            square = image[top : top + config.patch, left : left + config.patch]
            yield target.with_name(f"{target.stem}_s{row:03}_{column:03}.png"), _png(square)


def slices(source: Path, target: Path, config: PrepareConfig) -> Iterator[Output]:
    """16-bit gray slices named NAME_INDEX."""
    name = _base(target, "slices").name
    for number, plane in slices_of(source, config):
        yield target.with_name(f"{name}_{number:04}.png"), _png(plane[..., None])


COMMANDS: dict[str, Callable[[Path, Path, PrepareConfig], Iterator[Output]]] = {
    "bicubic": bicubic,
    "enlarge": enlarge,
    "crop": crop,
    "noise": noise,
    "patches": patches,
    "slices": slices,
}


def prepare(command: str, source: Path, target: Path, config: PrepareConfig) -> tuple[int, int, list[str]]:
    """Run one preparation over a folder; returns (inputs done, inputs found done, faults).

    An input is done when a marker beside its outputs (`.done/NAME`) names the same settings and the same size and
    time of the file; the marker is written last. Raises `ParamsError` if there is nothing to do.
    """
    suffixes = tuple(VOLUMES if command == "slices" else STILLS)
    if not source.is_dir():
        raise ParamsError(f"{source}: no such folder")
    files = sorted(Path(folder, name) for folder, names in walk(str(source)) for name in names)
    if command == "slices":  # also DICOM without a suffix
        files = [file for file in files if is_image_name(file) and not file.name.lower().endswith(tuple(STILLS))]
    else:
        files = [file for file in files if file.name.lower().endswith(suffixes)]
    if not files:
        raise ParamsError(f"{source}: no file that ends in {' '.join(sorted(suffixes))}")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise ParamsError(f"{target}: is where the inputs lie, and would be read as such; name a folder elsewhere")
    done, found, faults = 0, 0, []
    named: dict[Path, Path] = {}  # what outputs are named after, and whose they are
    with progress(command, len(files)) as advance:
        for file in files:
            relative = file.relative_to(source)
            stat = file.stat()
            marker = target / ".done" / relative.with_name(relative.name + ".txt")
            wanted = f"{command} {config.model_dump_json()} {stat.st_size} {stat.st_mtime_ns}"
            if (other := named.setdefault(_base(relative, command), file)) != file:
                faults.append(f"{file}: its outputs would be named as those of {other}; rename it")
            elif marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
                found += 1
            else:
                try:
                    for path, content in COMMANDS[command](file, target / relative, config):
                        write_file(path, content)
                    write_file(marker, wanted)
                    done += 1
                except (PrepareError, VolumeError) as error:
                    faults.append(str(error))
            advance(1)
    return done, found, faults


def _base(path: Path, command: str) -> Path:
    """`path` without the ending that its outputs do not have."""
    if command != "slices":
        return path.with_suffix("")
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm"))


def _starts(side: int, patch: int, stride: int) -> list[int]:
    return sorted({*range(0, max(side - patch, 0), stride), max(side - patch, 0)})


def _read(path: Path) -> np.ndarray:
    """uint8 or uint16 [H, W, 1 or 3], upright and as a person sees it; a fault is a `PrepareError`."""
    try:
        still = read_still(read_file(path))
        samples, pixels = still.samples, still.seen_upright()
    except (ImageFileError, MemoryError) as error:
        raise PrepareError(f"{path}: {error or 'not enough memory to decode it'}") from None
    except OSError as error:
        raise PrepareError(f"{path}: {error.strerror or error}") from None
    if samples.alpha is None and samples.dtype in (np.uint8, np.uint16):
        return upright(samples.values, still.orientation)  # in its own numbers
    if samples.dtype != np.uint8:
        pixels, top = pixels * 65535, np.uint16
    else:
        pixels, top = pixels * 255, np.uint8
    return np.round(pixels[..., :1] if samples.gray else pixels).astype(top)


def _degraded(source: Path, spec: DegradationSpec, seed: int) -> np.ndarray:
    """`degrade` at 8 bits, gray where the image is."""
    image = _read(source)
    if image.dtype != np.uint8:
        raise PrepareError(f"{source}: 16 bits; let index.datasets degrade it on the fly, which loses none of them")
    gray = image.shape[2] == 1
    gt = (np.repeat(image, 3, 2) if gray else image).astype(np.float32) / 255
    # The fractions k / 255 in float32 may lie a hair below k: rounding, not truncating, recovers them.
    lq = np.round(degrade(gt, spec, np.random.default_rng(seed)) * 255).astype(np.uint8)
    return lq[..., :1] if gray else lq


def _png(pixels: np.ndarray) -> bytes:
    """uint8 or uint16 [H, W, 1 or 3] as a PNG."""
    from PIL import Image

    if pixels.dtype == np.uint16:
        return png16.write(pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.prepare",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    parser.add_argument("source", type=Path, metavar="IN", help="folder, searched recursively")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder; subfolders and names follow IN")
    add_params_arguments(parser)
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        # It works on folders, not on a project: where no parameters lie, the defaults serve.
        absent = args.params == parser.get_default("params") and not args.params.exists()
        config = load_all(Path(os.devnull) if absent else args.params, args.overrides).prepare
        done, found, faults = prepare(args.command, args.source, args.target, config)
    except (ParamsError, OSError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    for fault in faults[:10]:
        print(f"  {fault}", file=sys.stderr)
    summary = f"{done} done, {found} were there, {len(faults)} faults, {time.monotonic() - started:.1f} s"
    print(f"prepare {args.command}: {summary} → {args.target}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
