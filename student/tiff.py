"""TIFF beyond Pillow: samples of 16 and 32 bits, and the tags that say where a picture is and who made it."""

import io
from typing import Any

import numpy as np
import tifffile
from PIL import Image

ORIENTATION = 274
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113)
"""Tags of a GeoTIFF: scale, tie points, transformation, the three of its keys, GDAL's metadata and no-data value."""
TAGS = (270, 271, 272, 306, 315, 33432, *GEOREFERENCE)
"""Besides those: description, maker, model, date, artist, copyright."""


def is_deep(image: Image.Image) -> bool:
    """Whether a sample has more than 8 bits."""
    return max(image.tag_v2.get(258, (1,))) > 8


def read_tags(data: bytes) -> tuple[tuple[int, int, int, Any], ...]:
    """Code, type, count and value of those of `TAGS` that the file has."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = [file.pages.first.tags.get(code) for code in TAGS]
    return tuple((tag.code, int(tag.dtype), tag.count, tag.value) for tag in tags if tag)


def read(data: bytes) -> np.ndarray:
    """Samples `[H, W]` or `[H, W, channels]` of any depth; raises `ImageFileError` for what it cannot decode."""
    from student.image_files import ImageFileError

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        if page.photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB):
            raise ImageFileError(f"a {page.photometric.name} TIFF of more than 8 bits; convert it to RGB first")
        try:
            samples = page.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                name = page.compression.name
                raise ImageFileError(f"16-bit TIFF with {name} compression needs: pip install imagecodecs") from None
            raise
        return np.moveaxis(samples, 0, -1) if page.planarconfig == 2 and samples.ndim == 3 else samples


def write(samples: np.ndarray, still: Any) -> bytes:
    """A TIFF of `samples` `[H, W, 1..4]`, with the profile, resolution, orientation and tags of `still`."""
    out = io.BytesIO()
    colours = samples.shape[-1] - (still.alpha is not None)
    dpi, turned = still.metadata.get("dpi"), still.metadata.get("orientation")
    if exif := still.metadata.get("exif"):
        (parsed := Image.Exif()).load(exif)
        turned = parsed.get(ORIENTATION)
    tifffile.imwrite(
        out,
        samples[..., 0] if samples.shape[-1] == 1 else samples,
        photometric="rgb" if colours == 3 else "minisblack",
        extrasamples=["unassalpha"] if still.alpha is not None else None,
        compression="zlib",
        iccprofile=still.metadata.get("icc_profile"),
        resolution=dpi and tuple(float(x) for x in dpi),
        resolutionunit="inch" if dpi else None,
        metadata=None,
        extratags=[(*tag, True) for tag in still.tags] + ([(ORIENTATION, 3, 1, turned, True)] if turned else []),
    )
    return out.getvalue()
