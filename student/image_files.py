"""Image files as the network sees them, and back again: what the file was (depth, gray, alpha, profile), it stays.

`read_picture(bytes)` gives float32 RGB and remembers the rest; `Picture.encode(restored)` gives the bytes of a file of
the same kind. Pillow alone would silently halve 16-bit colour to 8 bits, so PNG and TIFF of that depth take another
way (student/deep_png.py, student/tiff.py). DICOM and NIfTI are in student/medical_files.py.
"""

import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from student import deep_png, tiff
from student.cpu import free_bytes

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


class ImageFileError(ValueError):
    """A file that cannot be read, or not written as asked; the message is one line and names the remedy."""


@dataclass(frozen=True)
class Picture:
    """A decoded file. `rgb` is `[n, H, W, 3]` float32 in [0, 1]: n = 1, or the slices of a medical volume.

    `encode(restored)` takes restored pixels of the same shape and returns the bytes of the whole output file. `kind`
    says in words what the file is and what the output will be, for the summary.
    """

    rgb: np.ndarray
    encode: Callable[[np.ndarray], bytes]
    kind: str


@dataclass(frozen=True)
class Still:
    """What a still picture's file holds beside the colours that the network sees."""

    format: str
    gray: bool
    bits: int
    alpha: np.ndarray | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    lossless: bool = False
    value_range: tuple[float, float] | None = None
    """Range of the samples of a float or 32-bit file, mapped to [0, 1] for the network and back."""
    tags: tuple[tuple[int, int, int, Any], ...] = ()
    """Code, type, count and value of a TIFF's `student.tiff.TAGS`."""


def read_picture(data: bytes, name: str = "", output_suffix: str = "") -> Picture:
    """Decode the bytes of a PNG, JPEG, TIFF, WebP or BMP file, or, by suffix of `name`, DICOM or NIfTI.

    `output_suffix` (such as ".png") asks for another format of the output; by default it is that of the input.
    The pixel layout is kept as stored, so EXIF orientation, copied along, still turns the picture upright.
    Raises `ImageFileError` when the file cannot be decoded or the output format cannot hold what the file holds.
    """
    from student.medical_files import is_medical, read_medical

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
    words = f"{still.bits}-bit {'gray' if still.gray else 'RGB'}{' with alpha' if still.alpha is not None else ''}"
    return Picture(colours[None], lambda restored: _encode(restored[0], still), f"{words} {still.format}")


def read_rgb(data: bytes) -> np.ndarray:
    """The colours of one still picture as `[3, H, W]` float32 in [0, 1], for evaluation; raises `ImageFileError`."""
    return np.ascontiguousarray(_decode(data)[0].transpose(2, 0, 1))


def _check_output(still: Still) -> None:
    if still.alpha is not None and still.format in WITHOUT_ALPHA:
        raise ImageFileError(f"{still.format} holds no transparency; name the output .png, .tif or .webp")
    if still.bits > 8 and still.format not in DEEP_FORMATS:
        raise ImageFileError(f"{still.format} holds 8 bits, the input {still.bits}; name the output .png or .tif")
    if still.format != "TIFF" and any(code in tiff.GEOREFERENCE for code, *_ in still.tags):
        raise ImageFileError(f"{still.format} holds no georeference; name the output .tif")
    if still.bits == 32 and still.format != "TIFF":
        raise ImageFileError(f"{still.format} holds 16 bits at most, the input 32; name the output .tif")


def _decode(data: bytes) -> tuple[np.ndarray, Still]:
    """Colours `[H, W, 3]` float32 in [0, 1] and the rest."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                _check_memory(*image.size)
                return _decode_opened(image, data)
    except ImageFileError:
        raise
    except Image.DecompressionBombError:
        raise ImageFileError(f"more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels") from None
    except UnidentifiedImageError:
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


def _decode_opened(image: Image.Image, data: bytes) -> tuple[np.ndarray, Still]:
    kind = "JPEG" if image.format == "MPO" else image.format
    if kind not in SUFFIXES.values():
        raise ImageFileError(f"{kind} is not supported; convert it to PNG first")
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ImageFileError(f"{image.n_frames} frames or pages; split the file first")
    kept = {key: image.info[key] for key in ("icc_profile", "exif", "dpi") if image.info.get(key)}
    if kind == "PNG" and deep_png.bit_depth(data) == 16:
        return _from_samples(deep_png.read(data), Still("PNG", False, 16, metadata=kept))
    tags = tiff.read_tags(data) if kind == "TIFF" else ()
    if kind == "TIFF" and tiff.is_deep(image):
        if turned := image.tag_v2.get(tiff.ORIENTATION):
            kept["orientation"] = turned
        return _from_samples(tiff.read(data), Still("TIFF", False, 16, metadata=kept, tags=tags))
    lossless = kind == "WEBP" and _is_lossless_webp(data)
    image.load()  # turns a TIFF upright, unlike other formats
    if image.mode in ("CMYK", "YCbCr", "LAB"):
        image = _to_srgb(image, kept)
    gray = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.asarray(image.getchannel("A"))
    colours = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    return colours, Still(kind, gray, 8, alpha, kept, lossless, tags=tags)


def _to_srgb(image: Image.Image, metadata: dict[str, Any]) -> Image.Image:
    """Printing colours as sRGB, through the file's own profile when it has one; the output is an RGB file."""
    profile = metadata.pop("icc_profile", None)
    if profile and image.mode == "CMYK":
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


def _from_samples(samples: np.ndarray, still: Still) -> tuple[np.ndarray, Still]:
    """Deep samples `[H, W]` or `[H, W, 1..4]`: split off alpha, scale by the type's range, or a float's own range."""
    samples = samples[..., None] if samples.ndim == 2 else samples
    alpha = samples[..., -1] if samples.shape[-1] in (2, 4) else None
    colours = samples[..., :-1] if alpha is not None else samples
    if colours.shape[-1] not in (1, 3):
        raise ImageFileError(f"{samples.shape[-1]} channels; 1 to 4 are supported")
    if samples.dtype == np.uint16:
        low, high, bits, value_range = 0.0, 65535.0, 16, None
    else:
        if not np.isfinite(colours).all():
            raise ImageFileError("has samples that are not finite")
        low, high, bits = float(colours.min()), float(colours.max()), 32
        low, high = (0.0, 1.0) if 0 <= low and high <= 1 and samples.dtype.kind == "f" else (low, high)
        value_range = (low, high)
    scaled = ((colours.astype(np.float64) - low) / max(high - low, 1e-12)).astype(np.float32)
    gray = colours.shape[-1] == 1
    colours = np.repeat(scaled, 3, axis=-1) if gray else scaled
    return colours, replace(still, gray=gray, bits=bits, alpha=alpha, value_range=value_range)


def _encode(restored: np.ndarray, still: Still) -> bytes:
    """`restored` `[H, W, 3]` in [0, 1] as the bytes of a file of the kind that `still` says."""
    restored = restored.clip(0, 1)
    if still.gray:
        restored = restored.mean(-1, keepdims=True)
    if still.bits == 32:
        low, high = still.value_range
        return tiff.write((restored * (high - low) + low).astype(np.float32), still)
    peak = 2**still.bits - 1
    samples = np.round(restored * peak).astype(np.uint16 if still.bits == 16 else np.uint8)
    if still.alpha is not None:
        samples = np.concatenate([samples, still.alpha[..., None].astype(samples.dtype)], axis=-1)
    if still.bits == 16 or still.tags and still.format == "TIFF":
        return (deep_png.write if still.format == "PNG" else tiff.write)(samples, still)
    image = Image.fromarray(samples[..., 0] if samples.shape[-1] == 1 else samples)
    return _save(image, still)


def _save(image: Image.Image, still: Still) -> bytes:
    options = {key: value for key, value in still.metadata.items() if key != "orientation"}
    if still.format == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif still.format == "WEBP":
        options |= {"lossless": True} if still.lossless else {"quality": 95}
    elif still.format == "TIFF":
        options |= {"compression": "tiff_adobe_deflate"}
    out = io.BytesIO()
    image.save(out, format=still.format, **options)
    return out.getvalue()
