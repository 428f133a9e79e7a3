"""TIFF beyond Pillow: every type of sample, bands that are no colour, no-data, and the tags that say where and who.

Pillow reads what it would keep exactly (`Layout.plain`: 8-bit colours, with alpha or without); tifffile reads all else.
Both are written by tifffile, which keeps what `Layout` says of the bands.
"""

import io
import logging
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from student.images.picture import ImageFileError

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it logs of a tag, no user can act upon
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION = 274
NODATA, GDAL_METADATA = 42113, 42112
RPC, XMP, SOFTWARE = 50844, 700, 305
GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737, GDAL_METADATA, NODATA, RPC)
"""Tags of a GeoTIFF: scale, tie points, transformation, the three of its keys, GDAL's metadata and no-data value, and
the polynomials of a raw scene."""
TEXTS = (269, 270, 271, 272, 285, 305, 306, 315, 33432)
"""Names of document and page, description, maker, model, software, date, artist, copyright."""
LIMITS = ((280, 281), (340, 341))
"""Smallest and largest sample value, whole and of any type."""
PILLOWS = (1, 2, 3, 4, 5, 6, 7, 8, 32946)
"""Compressions of 8 bits that Pillow unpacks: none, fax, LZW, JPEG and deflate. Others it refuses or misreads."""
MOST_PAGES, MOST_ENTRIES = 10_000, 1_000_000
TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")
Tag = tuple[int, int, int, Any]
"""Code, type, count and value."""
UNSPECIFIED, PREMULTIPLIED, STRAIGHT = 0, 1, 2
"""What a band beside the colours is, by the tag ExtraSamples."""
MINISWHITE = 0
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
    pixel_bytes: int
    """Memory that its samples take beside the colours: as stored, unpacked, and as float64."""
    plain: bool
    """Whether Pillow keeps it (premultiplied alpha of 8 bits becomes straight)."""
    nodata: float | None
    tags: tuple[Tag, ...]
    """The `TEXTS`, `GEOREFERENCE` and `LIMITS` that the file has."""
    metadata: dict[str, Any]
    """Profile, resolution and orientation, named as Pillow names them."""
    limits: tuple[float, float] | None
    """Smallest and largest sample value that the tags name."""
    bands: tuple[int, ...] | None
    """Those that are colours, where there are more than four."""
    pages: int

    @property
    def inverted(self) -> bool:
        return self.photometric == MINISWHITE

    @property
    def alpha(self) -> bool:
        return self.extrasamples[-1:] in ((STRAIGHT,), (PREMULTIPLIED,))


def check_directories(data: bytes) -> None:
    """Follow the chain of directories, as no decoder does, for one that leads back or never ends."""
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    count, offset, entry = (order + "Q", order + "Q", 20) if big else (order + "H", order + "I", 12)
    seen: set[int] = set()
    entries = 0
    try:
        (at,) = struct.unpack_from(offset, data, 8 if big else 4)
        while at:
            if at in seen or len(seen) >= MOST_PAGES or entries > MOST_ENTRIES:
                raise ImageFileError("a TIFF whose directories lead in a circle or do not end")
            seen.add(at)
            (held,) = struct.unpack_from(count, data, at)
            entries += held
            (at,) = struct.unpack_from(offset, data, at + struct.calcsize(count) + entry * held)
    except struct.error:  # cut off: what can be read, the decoder tells
        pass


def read_layout(data: bytes, colours: Sequence[int] | None = None) -> Layout:
    """What the tags say, before anything is decoded; raises `ImageFileError` for what is not supported.

    `colours`: the one or three bands, from 0, that are colours.
    """
    check_directories(data)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        pages = [(i, page) for i, page in enumerate(file.pages) if not page.subfiletype & REDUCED_OR_MASK]
        pages = pages or [(0, file.pages.first)]
        number, page = pages[0]
        bands, bits, photometric = page.samplesperpixel, page.bitspersample, int(page.photometric)
        coloured = photometric in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB)
        deep_negative = photometric == MINISWHITE and page.dtype in (np.uint16, np.uint32) and bands == 1
        extra = tuple(int(x) for x in page.extrasamples)
        if coloured:  # a file without the tag does not say what its 4th band is
            beside = bands - (3 if photometric == tifffile.PHOTOMETRIC.RGB else 1)
            extra = (*extra, *[UNSPECIFIED] * beside)[:beside]
        simple = not coloured or page.compression in PILLOWS or np.max(bits) < 8
        small = page.sampleformat == 1 and np.max(bits) <= 8 and simple
        plain = small and not colours and (not coloured or extra in ((), (PREMULTIPLIED,), (STRAIGHT,)))
        if not plain:
            if not coloured and not deep_negative:
                raise ImageFileError(f"a {page.photometric.name} TIFF of {bits} bits; convert it to RGB first")
            if str(page.dtype) not in TYPES:
                raise ImageFileError(f"TIFF samples of type {page.dtype} ({bits} bits); convert it to 32-bit float")
            if colours and not all(0 <= band < bands for band in colours):
                raise ImageFileError(f"--bands {' '.join(str(b + 1) for b in colours)}: the file has {bands}")
            if bands > 4 and not colours and photometric != tifffile.PHOTOMETRIC.RGB:
                raise ImageFileError(f"{bands} bands: which are red, green, blue? --bands 4 3 2, or one for gray")
        kept = (XMP, *TEXTS, *GEOREFERENCE, *(() if plain else chain(*LIMITS)))
        tags = [(tag.code, int(tag.dtype), tag.count, tag.value) for code in kept if (tag := page.tags.get(code))]
        size = page.imagewidth, page.imagelength
        limits = [tuple(float(np.max(tag.value)) for code in pair if (tag := page.tags.get(code))) for pair in LIMITS]
        limits = next(((0.0, *found)[-2:] for found in limits if found), None) or _reflectances(tags)
        if limits is None and not plain and 8 < np.max(bits) < 16:  # packed; they come back as 16 bits that say so
            limits = 0.0, 2.0 ** int(np.max(bits)) - 1
            tags.append((LIMITS[0][1], 3, 1, int(limits[1])))
        chosen, count = tuple(colours) if colours else None, sum(page.imagedepth for _, page in pages)
        stored = bands * int(np.max(bits)) // 2
        fixed = (extra, stored, plain, _nodata(tags), tuple(tags), _metadata(page), limits, chosen, count)
        return Layout(number, *size, photometric, *fixed)


def _text(tags: list[Tag], wanted: int) -> str:
    return next((str(value) for code, _, _, value in tags if code == wanted), "")


def _reflectances(tags: list[Tag]) -> tuple[float, float] | None:
    """The samples that mean 0 and 1 by GDAL's scale and offset, where these lie as far apart as pixels can."""
    found = [re.search(rf'role="{role}"[^>]*>([^<]+)<', _text(tags, GDAL_METADATA)) for role in ("scale", "offset")]
    try:
        scale, offset = (float(match[1]) if match else 0.0 for match in found)
    except ValueError:
        return None
    if not 1 / 65535 <= scale <= 1 / 255:
        return None
    return (0 - offset) / scale, (1 - offset) / scale


def _nodata(tags: list[Tag]) -> float | None:
    text = _text(tags, NODATA)
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
    samples = np.moveaxis(samples[..., 0], 0, -1) if page.planarconfig == 2 else samples[0]
    return ~samples if layout.inverted else samples


def read_exif(block: bytes) -> Image.Exif:
    """The tags of an EXIF block; a damaged one says nothing, as to viewers."""
    exif = Image.Exif()
    try:
        exif.load(block)
    except Exception:  # SyntaxError, struct.error, ...
        return Image.Exif()
    return exif


def write(samples: np.ndarray, still: Any) -> bytes:
    """A TIFF of `samples` `[H, W, 1..4]`, with the bands' meaning, profile, resolution and tags of `still`."""
    out = io.BytesIO()
    photometric, extra = "rgb" if samples.shape[-1] > 2 else "minisblack", (STRAIGHT,) * (1 - samples.shape[-1] % 2)
    if still.layout:
        photometric, extra = still.layout.photometric, still.layout.extrasamples
        samples = ~samples if still.layout.inverted else samples
    tags = {code: (code, kind, count, value) for code, kind, count, value in still.tags}
    exif = read_exif(still.metadata.get("exif", b""))
    for code in TEXTS:  # and no other EXIF: its pointers would point nowhere in this file
        if code not in tags and isinstance(exif.get(code), str):
            tags[code] = code, 2, 0, exif[code].encode("latin-1")  # the bytes as Pillow found them
    if still.metadata.get("xmp") and XMP not in tags:
        tags[XMP] = XMP, 1, len(still.metadata["xmp"]), still.metadata["xmp"]
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
        software=tags.pop(SOFTWARE)[3] if SOFTWARE in tags else False,
        extratags=[_ascii(*tag) for tag in tags.values()],
    )
    return out.getvalue()


def _ascii(code: int, kind: int, count: int, value: Any) -> tuple[int, int, int, Any, bool]:
    """As tifffile takes it: text beyond ASCII ("Zürich") only as bytes."""
    return (code, 2, 0, value.encode(), True) if isinstance(value, str) else (code, kind, count, value, True)
