"""Any image file people keep in a dataset, as the 8-bit RGB picture a person would see; or one clear reason why not."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Default limit on width x height, checked on the header before any pixel is decoded: 100 Mpx is 300 MB as RGB."""


class BadImage(ValueError):
    """An image that cannot be described; `reason` is one line for the `error` column of the caption store."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def load_rgb(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode `source` (a path, or a file's bytes) to an upright 8-bit RGB `PIL.Image`.

    EXIF orientation is applied; gray, palette, CMYK, YCbCr and Lab are converted; transparency is composed over
    white; 16-bit, 32-bit and float samples are scaled by their real range and never saturated (see `_to_8_bit`).

    Raises `BadImage` for everything that is not one readable still picture: missing, empty, truncated, animated,
    not an image, more than `max_pixels`, or non-finite samples.
    """
    data = source if isinstance(source, bytes) else _read(Path(source))
    if not data:
        raise BadImage("empty file (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged by max_pixels below
            image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > max_pixels:
            raise BadImage(f"{width}x{height} has more than {max_pixels} pixels")
        # An MPO is a phone's JPEG with a second view behind it: a still photograph.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            raise BadImage(f"{image.n_frames} frames: animated or multi-page")
        image.load()
        return _to_rgb(_upright(image))
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"decompression bomb: {error}") from None
    except MemoryError:
        raise BadImage("not enough memory to decode it") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError, ...
        raise BadImage(f"cannot be decoded: {type(error).__name__}: {error}".splitlines()[0]) from error


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise BadImage("not a file" if path.exists() else "no such file")
        return path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an EXIF block that cannot be parsed names no orientation; the pixels themselves are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(samples: np.ndarray) -> np.ndarray:
    """Scale gray samples `[H, W]` to uint8 by their range; Pillow's own `convert` saturates 1000 of 65535 to 255.

    uint16 is divided by 65535. Wider integers and floats name no range, so the smallest usual one that holds every
    sample is taken: [0, 1] (floats only), [0, 255], [0, 65535]; otherwise, or when less than 1/16 of it is used
    (12-bit data, floats a little over 1), the image's own range.
    """
    values = samples.astype(np.float64)
    if not np.isfinite(values).all():
        raise BadImage("non-finite samples (NaN or infinity)")
    low, high = float(values.min()), float(values.max())
    if samples.dtype.itemsize == 2 and samples.dtype.kind == "u":
        span = (0.0, 65535.0)
    elif low >= 0 and high <= 65535:
        limits = (1.0, 255.0, 65535.0) if samples.dtype.kind == "f" else (255.0, 65535.0)
        limit = next(limit for limit in limits if high <= limit)
        span = (0.0, high if limit > 1 and high < limit / 16 else limit)
    else:
        span = (low, high)
    return np.rint((values - span[0]) * (255.0 / max(span[1] - span[0], 1e-12))).astype(np.uint8)
