"""Picture files, on disk and as bytes, for the tests of what comes back from them."""

import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageCms

from student.images.files import read_picture

RNG = np.random.default_rng(0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def file_of(samples, kind, **options) -> bytes:
    out = io.BytesIO()
    (samples if isinstance(samples, Image.Image) else Image.fromarray(samples)).save(out, kind, **options)
    return out.getvalue()


def tiff_of(samples, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, samples, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels_of(tiff: bytes) -> np.ndarray:
    return tifffile.imread(io.BytesIO(tiff))


def tags_of(data: bytes):
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return file.pages.first.tags


def again(data, name="", suffix=""):
    """The file as it comes back when nothing is restored."""
    picture = read_picture(data, name, suffix)
    assert picture.rgb.dtype == np.float32 and 0 <= picture.rgb.min() and picture.rgb.max() <= 1
    return picture.encode(picture.rgb)


def samples(*shape, dtype=np.uint8):
    return RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def picture(path: Path, seed: int, size: tuple[int, int] = (12, 10)) -> Path:
    """Write random RGB pixels of `size`, (width, height), to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
