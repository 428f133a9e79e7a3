"""Sixty files that break naive image loaders, made by program; each with the status that an honest loader gives it."""

import struct
import zlib
from pathlib import Path

import numpy as np
from picture_files import file_of
from PIL import Image


def make_hostile_images(folder: Path, seed: int = 0) -> dict[str, str]:
    """Write 60 files of distinct content into `folder`; returns file name -> `ok` | `bad_image`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {**_readable(np.random.default_rng(seed)), **_unreadable_or_several(np.random.default_rng(seed + 1))}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    assert len(files) == len(set(files.values())) == 60, len(set(files.values()))
    return {name: "bad_image" if name.startswith("bad") else "ok" for name in files}


def png_claiming(width: int, height: int) -> bytes:
    """A tiny, valid-looking PNG whose header announces `width` x `height` pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def _readable(rng: np.random.Generator) -> dict[str, bytes]:
    def rgb(width: int = 40, height: int = 30) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    files = {
        "ok_rgb.png": file_of(rgb(), "PNG"),
        "ok_rgb.webp": file_of(rgb(), "WEBP"),
    }
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "I"):
        image = Image.fromarray(rng.integers(0, 65536, (30, 40), dtype=np.uint16)) if mode == "I;16" else None
        image = Image.fromarray(rng.integers(0, 65536, (30, 40), dtype=np.int32)) if mode == "I" else image
        files[f"ok_{mode.replace(';', '_')}.png"] = file_of(image or rgb().convert(mode), "PNG")
    for mode in ("CMYK", "YCbCr", "L"):
        files[f"ok_{mode}.jpg"] = file_of(rgb().convert(mode), "JPEG")
    for mode in ("CMYK", "LAB", "RGBA", "1"):
        image = rgb().convert("RGB" if mode == "LAB" else mode)
        files[f"ok_{mode}.tif"] = file_of(
            Image.frombytes("LAB", image.size, image.tobytes()) if mode == "LAB" else image, "TIFF"
        )
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"ok_exif_{orientation}.jpg"] = file_of(rgb(), "JPEG", exif=exif)
    files["ok_exif_broken.jpg"] = file_of(rgb(), "JPEG", exif=b"Exif\0\0garbage" * 3)
    for name, low, high in (("unit", 0, 1), ("over_one", 0, 1.2), ("8_bit", 0, 255), ("hounsfield", -1000, 3000)):
        samples = rng.uniform(low, high, (30, 40)).astype(np.float32)
        files[f"ok_float_{name}.tif"] = file_of(Image.fromarray(samples), "TIFF")
    files["ok_16_bit.tif"] = file_of(Image.fromarray(rng.integers(0, 65536, (30, 40), dtype=np.uint16)), "TIFF")
    files["ok_transparent_palette.gif"] = file_of(rgb().convert("P"), "GIF", transparency=3)
    files["ok_one_pixel.png"] = file_of(rgb(1, 1), "PNG")
    files["ok_wide_strip.png"] = file_of(rgb(3000, 1), "PNG")
    files["ok_tall_strip.png"] = file_of(rgb(2, 2000), "PNG")
    files["ok_name with spaces, ünïcode and a wrong ending.jpg"] = file_of(rgb(), "PNG")
    return files


def _unreadable_or_several(rng: np.random.Generator) -> dict[str, bytes]:
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    frames = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
    png, jpg, gif = file_of(noise, "PNG"), file_of(noise, "JPEG"), file_of(noise.convert("P"), "GIF")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    nan = np.full((8, 8), np.nan, np.float32)
    holes = np.where(rng.random((8, 8)) < 0.5, np.inf, 1.0).astype(np.float32)
    animated = {"save_all": True, "append_images": frames[1:]}
    return {
        "bad_empty.png": b"",
        "bad_one_byte.png": b"\x89",
        "bad_header_only.png": png[:33],
        "bad_truncated.png": png[: len(png) // 2],
        "bad_truncated.jpg": jpg[: len(jpg) // 2],
        "bad_truncated.gif": gif[: len(gif) // 3],
        "bad_truncated.webp": file_of(noise, "WEBP")[:100],
        "bad_truncated.tif": file_of(noise, "TIFF")[:2000],
        "bad_truncated.bmp": file_of(noise, "BMP")[:2000],
        "bad_flipped_byte.png": bytes(flipped),
        "bad_text.png": b"this is not an image\n" * 20,
        "bad_html.jpg": b"<!doctype html><title>404 Not Found</title>",
        "bad_zeros.png": bytes(4096),
        "bad_noise.jpg": rng.bytes(4096),
        "bad_pdf.png": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + rng.bytes(64),
        "bad_zip.png": b"PK\x03\x04" + rng.bytes(200),
        "bad_svg.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "ok_animated.gif": file_of(frames[0], "GIF", **animated),
        "ok_animated.webp": file_of(frames[0], "WEBP", **animated),
        "ok_animated.png": file_of(frames[0], "PNG", **animated),
        "ok_pages.tif": file_of(frames[0], "TIFF", **animated),
        "bad_bomb.png": png_claiming(50_000, 50_000),
        "bad_big_bomb.png": png_claiming(2**31 - 1, 2**31 - 1),
        "bad_nan.tif": file_of(Image.fromarray(nan), "TIFF"),
        "bad_infinite.tif": file_of(Image.fromarray(holes), "TIFF"),
    }  # fmt: skip
