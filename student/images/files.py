"""Image files as the network sees them, and back again: what the file was (depth, gray, alpha, profile), it stays.

`read_picture(bytes)` gives float32 RGB and remembers the rest; `Picture.encode(restored)` gives the bytes of a file of
the same kind. Pillow alone would silently halve 16-bit colour to 8 bits, so such a PNG takes another way
(student/images/png16.py), and so does every TIFF that Pillow would not keep (student/images/tiff.py). What the network
sees of the samples is in student/images/sample_values.py. DICOM and NIfTI are in student/images/medical.py.
"""

import io
import warnings
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from student.images import png16 as deep_png
from student.images import tiff
from student.images.medical import is_medical, read_medical
from student.images.picture import ImageFileError, Picture
from student.images.sample_values import Samples, split
from student.machine import free_bytes

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
}
"""File name suffix → Pillow's name of the format."""

WITHOUT_ALPHA = ("JPEG", "BMP")
DEEP_FORMATS = ("PNG", "TIFF")
BYTES_A_PIXEL = 32
"""Decoded, as float32 before and after, and encoded; what the network needs is not in it."""


@dataclass(frozen=True)
class Still:
    """What a still picture's file holds beside the colours that the network sees."""

    format: str
    metadata: dict[str, Any] = field(default_factory=dict)
    lossless: bool = False
    layout: tiff.Layout | None = None
    """Of a TIFF that Pillow would not keep."""
    tags: tuple[tuple[int, int, int, Any], ...] = ()
    """Code, type, count and value of a TIFF's texts and georeference."""
    samples: Samples | None = None


def read_picture(data: bytes, name: str = "", output_suffix: str = "") -> Picture:
    """Decode the bytes of a PNG, JPEG, TIFF, WebP or BMP file, or, by suffix of `name`, DICOM or NIfTI.

    `output_suffix` (such as ".png") asks for another format of the output; by default it is that of the input.
    The pixel layout is kept as stored, so EXIF orientation, copied along, still turns the picture upright.
    Raises `ImageFileError` when the file cannot be decoded or the output format cannot hold what the file holds.
    """
    if not data:
        raise ImageFileError("empty file (0 bytes)")
    if is_medical(data, name):
        if output_suffix and not PurePath(name).name.lower().endswith(output_suffix):
            raise ImageFileError(f"a medical file keeps its own format; name the output like {PurePath(name).name}")
        return read_medical(data, name)
    colours, still = _decode(data)
    if output_suffix:
        target = SUFFIXES.get(output_suffix.lower())
        if target is None:
            raise ImageFileError(f"cannot write {output_suffix}; choose one of {', '.join(SUFFIXES)}")
        still = replace(still, format=target)
    _check_output(still)
    held = still.samples
    bits = f"{8 * held.dtype.itemsize}-bit" if held.dtype.kind == "u" else str(held.dtype)
    beside = "" if held.extra is None else " with alpha" if _is_straight(still) else " with another band"
    words = f"{bits} {'gray' if held.gray else 'RGB'}{beside} {still.format}"
    return Picture(colours[None], lambda restored: _encode(restored[0], still), words)


def read_rgb(data: bytes) -> np.ndarray:
    """The colours of one still picture as `[3, H, W]` float32 in [0, 1], for training and evaluation.

    A no-data value is a number like any other here: nothing is made up for a target. Raises `ImageFileError`.
    """
    colours, still = _decode(data, gaps=False)
    if still.samples.gaps:
        raise ImageFileError("samples that are not finite (NaN): nothing can be learned from them; fill or crop them")
    return np.ascontiguousarray(colours.transpose(2, 0, 1))


def _is_straight(still: Still) -> bool:
    return still.layout is None or still.layout.extrasamples[-1:] == (tiff.STRAIGHT,)


def _check_output(still: Still) -> None:
    if still.format == "TIFF":
        return
    dtype, alpha = still.samples.dtype, still.samples.extra is not None
    if alpha and still.format in WITHOUT_ALPHA:
        raise ImageFileError(f"{still.format} holds no transparency; name the output .png, .tif or .webp")
    if alpha and not _is_straight(still):
        raise ImageFileError(f"{still.format} holds no bands but colours and straight alpha; name the output .tif")
    if dtype not in (np.uint8, np.uint16):
        raise ImageFileError(f"{still.format} holds no {dtype} samples; name the output .tif")
    if dtype != np.uint8 and still.format not in DEEP_FORMATS:
        raise ImageFileError(f"{still.format} holds 8 bits, the input 16; name the output .png or .tif")
    if any(code in tiff.GEOREFERENCE for code, *_ in still.tags):
        raise ImageFileError(f"{still.format} holds no georeference; name the output .tif")


def _decode(data: bytes, gaps: bool = True) -> tuple[np.ndarray, Still]:
    """Colours `[H, W, 3]` float32 in [0, 1] and the rest; `gaps`: samples that are no data are put aside."""
    try:
        layout = tiff.read_layout(data) if data[:4] in tiff.MAGIC else None
        if layout and not gaps:
            layout = replace(layout, nodata=None)
        if layout and not layout.plain:
            _check_memory(layout.width, layout.height)
            still = Still("TIFF", layout.metadata, layout=layout, tags=layout.tags)
            return _from_samples(tiff.read(data, layout), still, layout.nodata)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                if layout:
                    image.seek(layout.page)
                _check_memory(*image.size)
                return _decode_opened(image, data, layout)
    except ImageFileError:
        raise
    except Image.DecompressionBombError:
        raise ImageFileError(f"more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels") from None
    except UnidentifiedImageError:
        if data[:4] in tiff.MAGIC:
            raise ImageFileError("a TIFF of a kind that is not supported; convert it to RGB first") from None
        raise ImageFileError("not an image that can be read (PNG, JPEG, TIFF, WebP, BMP, DICOM, NIfTI)") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError, ...
        raise ImageFileError(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from error


def _check_memory(width: int, height: int) -> None:
    """A header of a few bytes may promise more pixels than there is memory for."""
    needed = BYTES_A_PIXEL * width * height
    if needed > 2**29 and needed > (free := free_bytes()):
        raise ImageFileError(f"{width}x{height} pixels take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _decode_opened(image: Image.Image, data: bytes, layout: tiff.Layout | None) -> tuple[np.ndarray, Still]:
    kind = "JPEG" if image.format == "MPO" else image.format
    if kind not in SUFFIXES.values():
        raise ImageFileError(f"{kind} is not supported; convert it to PNG first")
    if not layout and getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ImageFileError(f"{image.n_frames} frames or pages; split the file first")
    kept = {key: image.info[key] for key in ("icc_profile", "exif", "dpi") if image.info.get(key)}
    if kind == "PNG":
        kept["chunks"] = deep_png.colour_chunks(data)
        if deep_png.bit_depth(data) == 16:
            return _from_samples(deep_png.read(data), Still("PNG", kept))
    lossless = kind == "WEBP" and _is_lossless_webp(data)
    image.load()  # turns a TIFF upright, unlike other formats
    if image.mode in ("CMYK", "YCbCr", "LAB"):
        profile = kept.pop("icc_profile", None)  # the output is an RGB file
        image = _to_srgb(image, profile if image.mode == "CMYK" else None)
    gray = image.mode in ("1", "L", "LA", "La")
    image = image.convert(("LA" if gray else "RGBA") if image.has_transparency_data else ("L" if gray else "RGB"))
    still = Still(kind, kept, lossless, tags=layout.tags if layout else ())
    return _from_samples(np.asarray(image), still, layout and layout.nodata)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as sRGB, through the file's own profile when it has one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:  # a damaged profile says nothing; the plain conversion is what viewers then show
            pass
    return image.convert("RGB")


def _is_lossless_webp(data: bytes) -> bool:
    """Whether the picture's own chunk is VP8L; profile and EXIF may stand before it."""
    at = 12
    while at + 8 <= len(data) and data[at : at + 4] not in (b"VP8L", b"VP8 "):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return data[at : at + 4] == b"VP8L"


def _from_samples(samples: np.ndarray, still: Still, nodata: float | None = None) -> tuple[np.ndarray, Still]:
    colours, held = split(samples, nodata)
    return colours, replace(still, samples=held)


def _encode(restored: np.ndarray, still: Still) -> bytes:
    """`restored` `[H, W, 3]` in [0, 1] as the bytes of a file of the kind that `still` says."""
    samples = still.samples.restored(restored)
    if still.format == "TIFF":
        return tiff.write(samples, still)
    if samples.dtype == np.uint16:
        return deep_png.write(samples, still)
    return _save(Image.fromarray(samples[..., 0] if samples.shape[-1] == 1 else samples), still)


def _save(image: Image.Image, still: Still) -> bytes:
    options = {key: value for key, value in still.metadata.items() if key != "chunks"}
    if still.format == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif still.format == "WEBP":
        options |= {"lossless": True} if still.lossless else {"quality": 95}
    elif still.format == "PNG":
        options["pnginfo"] = PngInfo()
        for chunk in still.metadata.get("chunks", ()):
            options["pnginfo"].add(*chunk)
    elif still.format == "BMP":  # holds neither profile nor orientation, so the pixels take them in
        image = _to_srgb(image, options.pop("icc_profile", None)).convert(image.mode)
        image.getexif()[tiff.ORIENTATION] = tiff.read_exif(options.pop("exif", b"")).get(tiff.ORIENTATION, 1)
        image = ImageOps.exif_transpose(image)
    out = io.BytesIO()
    image.save(out, format=still.format, **options)
    return out.getvalue()
