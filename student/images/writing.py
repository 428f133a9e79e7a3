"""A restored still picture as the bytes of a file of the kind that it was."""

import io
import struct

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from student.images import netpbm, tiff
from student.images import png16 as deep_png
from student.images.picture import ImageFileError, upright
from student.images.still import Still

LONGEST_EXIF = 65_533
"""Bytes in one segment of a JPEG."""
DEEP_FORMATS = ("PNG", "TIFF", "PPM")
WITHOUT_ALPHA = ("JPEG", "PPM")


def check_output(still: Still) -> None:
    """Raises `ImageFileError` for what the output format cannot hold, before the work."""
    if still.format == "TIFF":
        return
    held = still.samples
    if still.straight and still.format in WITHOUT_ALPHA:
        raise ImageFileError(f"{still.format} holds no transparency; name the output .png, .tif or .webp")
    if held.stored.shape[-1] != len(held.bands) + still.straight:
        raise ImageFileError(f"{still.format} holds no bands but colours and straight alpha; name the output .tif")
    if held.dtype not in (np.uint8, np.uint16):
        raise ImageFileError(f"{still.format} holds no {held.dtype} samples; name the output .tif")
    if held.dtype != np.uint8 and still.format not in DEEP_FORMATS:
        raise ImageFileError(f"{still.format} holds 8 bits, the input 16; name the output .png or .tif")
    if any(code in tiff.GEOREFERENCE for code, *_ in still.tags):
        raise ImageFileError(f"{still.format} holds no georeference; name the output .tif")
    if still.format in ("JPEG", "AVIF") and len(still.metadata.get("exif", b"")) > LONGEST_EXIF:
        raise ImageFileError(f"{still.format} holds no EXIF above 64 kB; name the output .png, .tif or .webp")


def encode(restored: np.ndarray, still: Still, seen: np.ndarray) -> bytes:
    """`restored` `[H, W, 3]` in [0, 1], in place of `seen`, as the bytes of a file of the kind that `still` says."""
    samples = still.samples.restored(restored, seen)
    if still.format == "TIFF":
        return tiff.write(samples, still)
    if still.format == "PPM" and samples.dtype == np.uint16:
        return netpbm.write(samples, int(still.samples.span.high))
    if samples.dtype == np.uint16:
        return deep_png.write(samples, still)
    return _save(Image.fromarray(samples[..., 0] if samples.shape[-1] == 1 else samples), still)


def _save(image: Image.Image, still: Still) -> bytes:
    keep = {"JPEG": ("icc_profile", "exif", "dpi", "xmp", "comment"), "WEBP": ("icc_profile", "exif", "xmp"),
            "PNG": ("icc_profile", "exif", "dpi"), "AVIF": ("icc_profile", "exif", "xmp"), "BMP": ("dpi",),
            "GIF": ("comment",), "JPEG2000": ("comment",)}  # fmt: skip
    options = {key: still.metadata[key] for key in keep.get(still.format, ()) if key in still.metadata}
    if still.format == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    elif still.format == "WEBP":
        options |= {"lossless": True, "exact": True} if still.lossless else {"quality": 95}
    elif still.format == "AVIF":
        options |= {"quality": 95}
    elif still.format == "PNG":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        for chunk in still.metadata.get("chunks", ()):
            options["pnginfo"].add(*chunk)
    else:  # hold neither profile nor orientation, so the pixels take them in
        alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
        if still.metadata.get("icc_profile") and alpha is None:
            image = to_srgb(image, still.metadata["icc_profile"]).convert(image.mode)
        pixels = np.asarray(image)
        turned = upright(pixels if pixels.ndim == 3 else pixels[..., None], still.orientation)
        image = Image.fromarray(turned if pixels.ndim == 3 else turned[..., 0])
        if still.format == "BMP" and alpha:
            return _bmp_with_alpha(np.asarray(image.convert("RGBA")))
        if still.format == "GIF" and not alpha:  # with it, Pillow keeps a transparent entry of the palette
            image = image.quantize(256, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, format=still.format, **options)
    return out.getvalue()


def _bmp_with_alpha(rgba: np.ndarray) -> bytes:
    """Pillow writes the band, and not that it is transparency: the fourth version of the header says so."""
    body, (height, width) = rgba[::-1, :, [2, 1, 0, 3]].tobytes(), rgba.shape[:2]
    start = struct.pack("<2sIII", b"BM", 122 + len(body), 0, 122)
    sizes = (108, width, height, 1, 32, 3, len(body), 2835, 2835, 0, 0)
    return start + struct.pack("<IiiHHIIiiII4I52x", *sizes, 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + body


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Colours as sRGB, through the file's own profile when it has one."""
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
        except ImageCms.PyCMSError:  # a damaged profile says nothing; the plain conversion is what viewers then show
            pass
    return image.convert("RGB")
