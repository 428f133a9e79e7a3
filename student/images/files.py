"""Image files as the network sees them, and back again: what the file was (depth, gray, alpha, profile), it stays.

The one reader of every stage. `read_picture(bytes)` gives float32 RGB and remembers the rest; `Picture.encode`
gives the bytes of a file of the same kind. `read_rgb`, `read_8_bit` and `inspect` give what training, captions and the
index need, upright and in the same range. Which files are taken is in student/images/formats.py, what their numbers
mean in sample_values.py. Pillow alone would silently halve 16-bit colour to 8 bits, so such files take another way
(png16.py, netpbm.py, tiff.py). DICOM and NIfTI are in medical.py.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from student.files import in_place_of
from student.images import deep, netpbm, tiff
from student.images import png16 as deep_png
from student.images.formats import STILLS
from student.images.medical import is_medical, read_medical
from student.images.picture import BYTES_A_PIXEL, ImageFileError, Picture, check_size, upright
from student.images.sample_values import Samples, ValueRange, understand
from student.images.still import Still
from student.images.writing import check_output, encode, to_srgb

MOST_SCANS = 200
"""Passes of a progressive JPEG over its pixels: encoders make ten, a hostile file any number."""
Image.MAX_IMAGE_PIXELS = None  # `check_size` judges, by what the stage allows and by the free memory
PngImagePlugin.MAX_TEXT_CHUNK = 2**26  # of colour profiles: texts never reach Pillow


class Facts(NamedTuple):
    """What the index keeps of an image; `mode` says which of several frames counts."""

    width: int
    height: int
    mode: str
    span: ValueRange


def read_picture(
    data: bytes,
    name: str = "",
    output_suffix: str = "",
    span: ValueRange | None = None,
    bands: Sequence[int] | None = None,
) -> Picture:
    """Decode the bytes of one of the `STILLS`, or, by suffix of `name`, DICOM or NIfTI.

    `output_suffix` (such as ".png") asks for another format of the output; by default it is that of the input. `span`:
    what is black and white, where the file does not say it. `bands`: those of a TIFF, from 0, that are colours.
    The pixel layout is kept as stored, so EXIF orientation, copied along, still turns the picture upright.
    Raises `ImageFileError` when the file cannot be decoded or the output format cannot hold what the file holds.
    """
    if data and is_medical(data, name):
        if output_suffix and not PurePath(name).name.lower().endswith(output_suffix):
            raise ImageFileError(f"a medical file keeps its own format; name the output like {PurePath(name).name}")
        return read_medical(data, name, span)
    still = read_still(data, span=span, bands=bands)
    if output_suffix:
        target = STILLS.get(output_suffix.lower())
        if target is None:
            raise ImageFileError(f"cannot write {output_suffix}; choose one of {', '.join(STILLS)}")
        still = replace(still, format=target)
    check_output(still)
    held = still.samples
    bits = f"{8 * held.dtype.itemsize}-bit" if held.dtype.kind == "u" else str(held.dtype)
    beside = " with alpha" if still.straight else " with more bands" if held.stored.shape[-1] > len(held.bands) else ""
    words = f"{bits} {'gray' if held.gray else 'RGB'}{beside} {still.format}"
    notes = [f"the first of {still.frames} pictures in the file"] if still.frames > 1 else []
    notes += [str(held.span)] if held.span.source else []
    rgb = held.colours()
    return Picture(rgb[None], lambda restored: encode(restored[0], still, rgb), words, tuple(notes), still.orientation)


def read_rgb(data: bytes, span: ValueRange | None = None) -> np.ndarray:
    """The colours of one still picture, upright, as `[3, H, W]` float32 in [0, 1]. Raises `ImageFileError`."""
    return np.ascontiguousarray(read_still(data, span=span).seen_upright().transpose(2, 0, 1))


def read_8_bit(data: bytes, max_pixels: int | None = None) -> Image.Image:
    """One still picture as a person sees it: upright, RGB, 8 bits. Raises `ImageFileError`."""
    still = read_still(data, max_pixels)
    samples = still.samples
    if samples.dtype == np.uint8 and samples.alpha is None:
        pixels = upright(samples.values, still.orientation)
        return Image.fromarray(pixels[..., 0] if samples.gray else pixels).convert("RGB")
    return Image.fromarray(np.round(still.seen_upright() * 255).astype(np.uint8))


def inspect(data: bytes, max_pixels: int | None = None) -> Facts:
    """Decode a still picture whole, as every later stage will; raises `ImageFileError` as `read_rgb` would."""
    still = read_still(data, max_pixels)
    values = still.samples.values
    if values.dtype.kind == "f":
        still.seen_upright()
    height, width = values.shape[:2] if still.orientation < 5 else values.shape[1::-1]
    mode = still.mode + f" (1 of {still.frames})" * (still.frames > 1)
    return Facts(width, height, mode, still.samples.span)


def read_still(
    data: bytes, max_pixels: int | None = None, span: ValueRange | None = None, bands: Sequence[int] | None = None
) -> Still:
    """Decode the first picture of a file, by its content alone; raises `ImageFileError`."""
    if not data:
        raise ImageFileError("empty file (0 bytes)")
    try:
        layout = tiff.read_layout(data, bands) if data[:4] in tiff.MAGIC else None
        if bands and not layout:
            raise ImageFileError("--bands are those of a TIFF")
        if layout and not layout.plain:
            check_size(layout.width, layout.height, max_pixels, BYTES_A_PIXEL + layout.pixel_bytes)
            return _from_tiff(data, layout, span)
        kept: dict[str, Any] = {}
        if data.startswith(deep_png.SIGNATURE):
            data, kept["chunks"] = deep_png.take_apart(data)
        if header := netpbm.read_header(data):
            check_size(*header[1:3], max_pixels)
            samples = understand(netpbm.read(data, header), span=span, tagged=(0, header[3]))
            return Still("PPM", samples, _mode(samples))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata is no fault
            with Image.open(io.BytesIO(data), formats=sorted(set(STILLS.values()))) as image:
                if layout:
                    image.seek(layout.page)
                check_size(*image.size, max_pixels)
                return _from_pillow(image, data, layout, kept, span)
    except ImageFileError:
        raise
    except UnidentifiedImageError:
        if data[:4] in tiff.MAGIC:
            raise ImageFileError("a TIFF of a kind that is not supported; convert it to RGB first") from None
        if reason := in_place_of(data[:200], "the image"):
            raise ImageFileError(reason) from None
        known = ", ".join(dict.fromkeys(STILLS.values()))
        raise ImageFileError(f"not an image that can be read ({known}, DICOM, NIfTI)") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError, ...
        raise ImageFileError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _from_tiff(data: bytes, layout: tiff.Layout, span: ValueRange | None) -> Still:
    premultiplied = layout.extrasamples[-1:] == (tiff.PREMULTIPLIED,)
    fixed = {"span": span, "tagged": layout.limits, "premultiplied": premultiplied}
    samples = understand(tiff.read(data, layout), layout.bands, layout.nodata, layout.alpha, **fixed)
    turn = tiff.read_exif(layout.metadata.get("exif", b"")).get(tiff.ORIENTATION, 1)
    return Still("TIFF", samples, _mode(samples), layout.pages, turn, layout.metadata, layout=layout, tags=layout.tags)


def _mode(samples: Samples) -> str:
    bits, kind = 8 * samples.dtype.itemsize, samples.dtype.kind
    if samples.gray and samples.alpha is None and bits > 8:
        return "I;16" if bits == 16 else f"{'F' if kind == 'f' else 'I'}" + f";{bits}" * (bits > 32)
    return ("L" if samples.gray else "RGB") + "A" * (samples.alpha is not None) + f";{bits}" * (bits > 8)


def _from_pillow(
    image: Image.Image, data: bytes, layout: tiff.Layout | None, kept: dict[str, Any], span: ValueRange | None
) -> Still:
    kind = "JPEG" if image.format == "MPO" else image.format
    frames = layout.pages if layout else getattr(image, "n_frames", 1)
    if image.info.get("progressive") and data.count(b"\xff\xda") > MOST_SCANS:
        raise ImageFileError(f"a JPEG of more than {MOST_SCANS} scans")
    mode = image.mode
    image.load()  # turns a TIFF upright, unlike other formats; metadata may follow the pixels
    kept |= {key: image.info[key] for key in ("icc_profile", "exif", "dpi", "xmp", "comment") if image.info.get(key)}
    if any(not np.isfinite(float(x)) or x <= 0 for x in kept.get("dpi", ())):
        del kept["dpi"]
    turn = 1 if layout else _orientation(image)
    if turn != 1 and tiff.read_exif(kept.get("exif", b"")).get(tiff.ORIENTATION) != turn:
        exif = Image.Exif()  # XMP alone says it
        exif[tiff.ORIENTATION] = turn
        kept["exif"] = exif.tobytes()
    if kind == "PNG" and deep_png.bit_depth(data) == 16:
        stored = deep_png.read(data)
        samples = understand(stored, alpha=stored.shape[-1] in (2, 4), span=span)
        return Still("PNG", samples, _mode(samples), frames, turn, kept)
    if deep.bit_depth(data, kind) > 8:
        stored, limits = deep.read(data, kind)
        samples = understand(stored, alpha=stored.shape[2:] in ((2,), (4,)), span=span, tagged=limits)
        return Still(kind, samples, _mode(samples), frames, turn, kept)
    lossless = kind == "WEBP" and _is_lossless_webp(data)
    if image.mode in ("CMYK", "YCbCr", "LAB"):
        profile = kept.pop("icc_profile", None)  # the output is an RGB file
        image = to_srgb(image, profile if image.mode == "CMYK" else None)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        stored = np.asarray(image)
        stored = stored.astype(np.uint16) if stored.dtype.kind in "iu" else stored
        samples, mode = understand(stored, span=span), "I;16" if stored.dtype.kind == "u" else "F"
    else:
        gray, alpha = image.mode in ("1", "L", "LA", "La"), image.has_transparency_data
        image = image.convert(("LA" if gray else "RGBA") if alpha else ("L" if gray else "RGB"))
        samples = understand(np.asarray(image), None, layout and layout.nodata, alpha, span=span)
    tags = layout.tags if layout else ()
    return Still(kind, samples, mode, frames, turn, kept, lossless, tags=tags)


def _orientation(image: Image.Image) -> int:
    """What EXIF, or else XMP, says; a damaged block says nothing, as to viewers."""
    try:
        turn = image.getexif().get(tiff.ORIENTATION, 1)
    except Exception:  # SyntaxError, struct.error, KeyError, ...
        return 1
    return turn if turn in range(1, 9) else 1


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the picture's own chunk is VP8L; profile and EXIF may stand before it."""
    at = 12
    while at + 8 <= len(data) and data[at : at + 4] not in (b"VP8L", b"VP8 "):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return data[at : at + 4] == b"VP8L"
