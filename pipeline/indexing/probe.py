"""What is in one image file: hash, size, mode, or what is wrong with it. Light: worker processes import only this."""

import hashlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple


class Probe(NamedTuple):
    """One file, decoded whole. `error` is None for a good image, and names the file otherwise.

    `width` and `height` are of the upright image (EXIF). `mode` is Pillow's, with `;16` behind a colour mode of 16
    bits a sample, which Pillow alone would not tell from 8 bits.
    """

    sha256: str | None
    width: int
    height: int
    mode: str
    error: str | None


def probe(path: str, max_pixels: int) -> Probe:
    """Read, hash and decode one file. Never raises for what is wrong with the file."""
    from PIL import Image

    def bad(reason: str, sha256: str | None = None) -> Probe:
        return Probe(sha256, 0, 0, "", f"{path}: {reason}")

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return bad(error.strerror or "cannot be read")
    if not content:
        return bad("0 bytes; copy it again")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_pixels judges bombs; odd metadata is no fault
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > max_pixels:
                    pixels = f"{image.width}x{image.height} pixels, more than index.max_pixels = {max_pixels}"
                    return bad(pixels, sha256)
                image.load()  # only a full decode finds a truncated file
                width, height = image.size
                if image.getexif().get(0x0112, 1) >= 5:  # the camera lay on its side
                    width, height = height, width
                return Probe(sha256, width, height, _mode(image, content), None)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError ... for broken files
        reason = "no image that Pillow knows" if "cannot identify" in str(error) else " ".join(str(error).split())
        return bad(f"cannot be decoded ({reason}); copy it again or remove it", sha256)


def probe_chunk(paths: list[str], max_pixels: int) -> list[Probe]:
    """`probe` for several files, for worker processes."""
    return [probe(path, max_pixels) for path in paths]


def depth(mode: str) -> int:
    """Bits a sample of a `Probe.mode`."""
    return 16 if "16" in mode else 32 if mode in ("I", "F") else 1 if mode == "1" else 8


def _mode(image, content: bytes) -> str:
    if image.mode == "I" and image.format == "PNG":  # a 16-bit gray PNG, by older versions of Pillow
        return "I;16"
    deep = (image.format == "PNG" and content[24] == 16) or (image.format == "TIFF" and 16 in image.tag_v2.get(258, ()))
    return f"{image.mode};16" if deep and depth(image.mode) == 8 else image.mode
