"""16-bit PNG in and out. Pillow decodes 16-bit colour to 8 bits without a word; this keeps every bit.

Reading: Pillow's own inflater runs twice over the image data, once for the high bytes of each sample, once for the
low bytes ("16B" and "16L" name which of the two bytes it keeps), so speed and interlacing are Pillow's.
"""

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from student.images.picture import ImageFileError

if TYPE_CHECKING:
    from student.images.still import Still

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
COLOUR_TYPE = {count: code for code, count in CHANNELS.items()}
KEPT = (b"cHRM", b"cICP", b"gAMA", b"sRGB", b"tEXt", b"zTXt", b"iTXt")
"""What the numbers look like on a display, where no ICC profile says it; texts."""
TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def bit_depth(data: bytes) -> int:
    """Bits per sample that the header of a PNG file names."""
    return data[24]


def take_apart(data: bytes) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]]:
    """The file without its texts and without damaged chunks that are no pixels; and the `KEPT` chunks it has.

    Decoders unpack texts, refuse large ones, and stop at a wrong checksum of a comment. Raises `ImageFileError` for
    two headers: some decoders believe the second, which no check of size has seen.
    """
    parts, found, at = [SIGNATURE], [], len(SIGNATURE)
    while at + 12 <= len(data):
        name, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IHDR" and b"IHDR" in (part[4:8] for part in parts):
            raise ImageFileError("a PNG with two headers")
        extra = name[:1].islower() and end <= len(data)
        whole = not extra or int.from_bytes(data[end - 4 : end], "big") == zlib.crc32(data[at + 4 : end - 4])
        if whole and name in KEPT:
            found.append((name, data[at + 8 : end - 4]))
        if whole and name not in TEXTS:
            parts.append(data[at:end])
        at = end
        if name == b"IEND":
            break
    return b"".join([*parts, data[at:]]) if at < len(data) else b"".join(parts), tuple(found)


def read(data: bytes) -> np.ndarray:
    """Samples `[H, W, channels]` uint16 of a 16-bit PNG; raises OSError or ValueError for damaged data."""
    width, height, _, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    chunks = _chunks(data)
    packed = b"".join(body for name, body in chunks if name == b"IDAT")
    if colour_type == 4:  # gray and alpha have as many bytes a pixel as 8-bit RGBA
        pairs = Image.frombytes("RGBA", (width, height), packed, "zip", "RGBA", interlaced)
        return np.frombuffer(pairs.tobytes(), ">u2").reshape(height, width, 2).astype(np.uint16)
    if colour_type == 0:
        gray = Image.frombytes("I;16", (width, height), packed, "zip", "I;16B", interlaced)
        return _with_transparency(np.asarray(gray)[..., None], dict(chunks))
    mode = "RGBA" if colour_type == 6 else "RGB"
    high, low = (
        np.asarray(Image.frombytes(mode, (width, height), packed, "zip", f"{mode};16{byte}", interlaced))
        for byte in "BL"
    )
    samples = high.astype(np.uint16) << 8 | low
    return samples if mode == "RGBA" else _with_transparency(samples, dict(chunks))


def _with_transparency(samples: np.ndarray, chunks: dict[bytes, bytes]) -> np.ndarray:
    """`samples` with an alpha channel where the chunk tRNS names one colour as transparent."""
    if b"tRNS" not in chunks:
        return samples
    opaque = (samples != np.frombuffer(chunks[b"tRNS"], ">u2")).any(-1, keepdims=True)
    return np.concatenate([samples, opaque * np.uint16(65535)], axis=-1)


def write(samples: np.ndarray, still: "Still | None" = None) -> bytes:
    """A 16-bit PNG of `samples` `[H, W, 1..4]` uint16, with what `still.metadata` has of profile, EXIF, dpi, chunks."""
    metadata = still.metadata if still else {}
    height, width, channels = samples.shape
    rows = samples.astype(">u2").view(np.uint8).reshape(height, width * channels * 2)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = 2  # "Up": each byte as the difference from the row above, which deflate packs well
    filtered[0, 1:] = rows[0]
    filtered[1:, 1:] = rows[1:] - rows[:-1]
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPE[channels], 0, 0, 0)
    parts = [SIGNATURE, _chunk(b"IHDR", header)]
    parts += [_chunk(name, body) for name, body in metadata.get("chunks", ())]
    if profile := metadata.get("icc_profile"):
        parts.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if dpi := metadata.get("dpi"):
        parts.append(_chunk(b"pHYs", struct.pack(">IIB", *(round(float(x) / 0.0254) for x in dpi), 1)))
    if exif := metadata.get("exif"):
        parts.append(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return b"".join([*parts, _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)), _chunk(b"IEND", b"")])


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found: list[tuple[bytes, bytes]] = []
    at = len(SIGNATURE)
    while at + 12 <= len(data) and (not found or found[-1][0] != b"IEND"):  # some programs write on after it
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise ValueError("the file is truncated")
        checksum = data[at + 8 + length : at + 12 + length]
        if struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + length])) != checksum:
            raise ValueError(f"damaged PNG chunk {data[at + 4 : at + 8]!r}")
        found.append((data[at + 4 : at + 8], body))
        at += length + 12
    if not found or found[-1][0] != b"IEND":
        raise ValueError("the file is truncated")
    return found


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
