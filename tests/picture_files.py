"""Picture files as bytes, for the tests of what comes back from them."""

import io

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
