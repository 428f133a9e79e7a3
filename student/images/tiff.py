"""TIFF beyond Pillow: every type of sample, bands that are no colour, no-data, and the tags that say where and who.

Pillow reads what it would keep exactly (`Layout.plain`: 8-bit colours, with alpha or without); tifffile reads all else.
Both are written by tifffile, which keeps what `Layout` says of the bands.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from student.images.picture import ImageFileError

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274
NODATA = 42113
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737, 42112, NODATA)
"""Tags of a GeoTIFF: scale, tie points, transformation, the three of its keys, GDAL's metadata and no-data value."""
TEXTS = (270, 271, 272, 306, 315, 33432)
"""Description, maker, model, date, artist, copyright."""
TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2
"""What a band beside the colours is, by the tag ExtraSamples."""
REDUCED_OR_MASK = 1 | 4
"""NewSubfileType of pages that are no pictures of their own: overviews of the picture, and masks."""


@dataclass(frozen=True)
class Layout:
    """How the one picture of a TIFF is stored: by `photometric` and `extrasamples` as its tags have them."""

    page: int
    width: int
    height: int
    photometric: int
    extrasamples: tuple[int, ...]
    plain: bool
    """Whether Pillow keeps it (premultiplied alpha of 8 bits becomes straight)."""
    nodata: float | None
    tags: tuple[tuple[int, int, int, Any], ...]
    """Code, type, count and value of the `TEXTS` and `GEOREFERENCE` that the file has."""
    metadata: dict[str, Any]
    """Profile, resolution and orientation, named as Pillow names them."""


def read_layout(data: bytes) -> Layout:
    """What the tags say, before anything is decoded; raises `ImageFileError` for what is not supported."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [(i, page) for i, page in enumerate(file.pages) if not page.subfiletype & REDUCED_OR_MASK]
        pages = pages or [(0, file.pages.first)]
        if (count := sum(page.imagedepth for _, page in pages)) > 1:
            raise ImageFileError(f"{count} frames or pages; split the file first")
        ((number, page),) = pages
        bands, bits, photometric = page.samplesperpixel, page.bitspersample, int(page.photometric)
        coloured = photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        extra = tuple(int(x) for x in page.extrasamples)
        if coloured:  # a file without the tag does not say what its 4th band is
            beside = bands - (3 if photometric == tifffile.PHOTOMETRIC.RGB else 1)
            extra = (*extra, *[UNSPECIFIED] * beside)[:beside]
        small = page.sampleformat == 1 and np.max(bits) <= 8
        plain = small and (not coloured or extra in ((), (PREMULTIPLIED,), (STRAIGHT,)))
        if not plain:
            if not coloured:
                raise ImageFileError(f"a {page.photometric.name} TIFF of {bits} bits; convert it to RGB first")
            if str(page.dtype) not in TYPES:
                raise ImageFileError(f"TIFF samples of type {page.dtype} ({bits} bits); convert it to 32-bit float")
            if bands > 4:
                raise ImageFileError(f"{bands} bands; 1 to 4 are supported, so split the file into files of that many")
        tags = [page.tags.get(code) for code in (*TEXTS, *GEOREFERENCE)]
        tags = tuple((tag.code, int(tag.dtype), tag.count, tag.value) for tag in tags if tag)
        size = page.imagewidth, page.imagelength
        return Layout(number, *size, photometric, extra, plain, _nodata(tags), tags, _metadata(page))


def _nodata(tags: tuple[tuple[int, int, int, Any], ...]) -> float | None:
    text = next((str(value) for code, _, _, value in tags if code == NODATA), "")
    try:
        return float(text.strip("\0 "))
    except ValueError:  # GDAL too takes such a file for one without
        return None


def _metadata(page: tifffile.TiffPage) -> dict[str, Any]:
    value = {code: tag.value for code in (282, 283, 296, 34675, ORIENTATION) if (tag := page.tags.get(code))}
    found: dict[str, Any] = {}
    if 34675 in value:
        found["icc_profile"] = bytes(value[34675])
    if value.get(296) in (2, 3) and {282, 283} <= value.keys():  # inch or centimetre; 1 is no unit
        per_inch = 1.0 if value[296] == 2 else 2.54
        found["dpi"] = tuple(value[code][0] / (value[code][1] or 1) * per_inch for code in (282, 283))
    if value.get(ORIENTATION, 1) != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = int(value[ORIENTATION])
        found["exif"] = exif.tobytes()
    return found


def read(data: bytes, layout: Layout) -> np.ndarray:
    """Samples `[H, W, bands]` in the file's own type; raises `ImageFileError` for what it cannot decode."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[layout.page]
        try:
            samples = page.asarray().reshape(page.shaped)[:, 0]
        except ValueError as error:
            if "imagecodecs" in str(error):
                packed = f"{page.dtype} TIFF with {page.compression.name} compression, predictor {page.predictor}"
                raise ImageFileError(f"{packed} needs: pip install imagecodecs") from None
            raise
    return np.moveaxis(samples[..., 0], 0, -1) if page.planarconfig == 2 else samples[0]


def read_exif(block: bytes) -> Image.Exif:
    """The tags of an EXIF block; a damaged one says nothing, as to viewers."""
    exif = Image.Exif()
    try:
        exif.load(block)
    except SyntaxError:
        return Image.Exif()
    return exif


def write(samples: np.ndarray, still: Any) -> bytes:
    """A TIFF of `samples` `[H, W, 1..4]`, with the bands' meaning, profile, resolution and tags of `still`."""
    out = io.BytesIO()
    photometric, extra = "rgb" if samples.shape[-1] > 2 else "minisblack", (STRAIGHT,) * (1 - samples.shape[-1] % 2)
    if still.layout:
        photometric, extra = still.layout.photometric, still.layout.extrasamples
    tags = {code: (code, kind, count, value) for code, kind, count, value in still.tags}
    exif = read_exif(still.metadata.get("exif", b""))
    for code in TEXTS:  # and no other EXIF: its pointers would point nowhere in this file
        if code not in tags and isinstance(exif.get(code), str):
            tags[code] = code, 2, 0, exif[code].encode("latin-1")  # the bytes as Pillow found them
    if exif.get(ORIENTATION):
        tags[ORIENTATION] = ORIENTATION, 3, 1, exif[ORIENTATION]
    dpi = still.metadata.get("dpi")
    tifffile.imwrite(
        out,
        samples[..., 0] if samples.shape[-1] == 1 else samples,
        photometric=photometric,
        planarconfig="contig" if samples.shape[-1] > 1 else None,
        extrasamples=extra or None,
        compression="zlib",
        iccprofile=still.metadata.get("icc_profile"),
        resolution=dpi and tuple(float(x) for x in dpi),
        resolutionunit="inch" if dpi else None,
        metadata=None,
        extratags=[_ascii(*tag) for tag in tags.values()],
    )
    return out.getvalue()


def _ascii(code: int, kind: int, count: int, value: Any) -> tuple[int, int, int, Any, bool]:
    """As tifffile takes it: text beyond ASCII ("Zürich") only as bytes."""
    return (code, 2, 0, value.encode(), True) if isinstance(value, str) else (code, kind, count, value, True)
