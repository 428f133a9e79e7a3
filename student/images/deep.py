"""JPEG 2000 and AVIF of more than 8 bits: Pillow halves colours to 8 bits without a word, and scales gray."""

import numpy as np

from student.images.picture import ImageFileError


def bit_depth(data: bytes, kind: str) -> int:
    """Bits per sample that the file names, by the size marker of a JPEG 2000 or the codec's box of an AVIF."""
    if kind == "JPEG2000" and (at := data.find(b"\xff\x4f\xff\x51")) >= 0:
        return (data[at + 42] & 0x7F) + 1
    if kind == "AVIF" and (at := data.find(b"av1C")) >= 0:
        return {0: 8, 2: 10, 3: 12}.get(data[at + 6] >> 5 & 3, 8)
    return 8


def read(data: bytes, kind: str) -> tuple[np.ndarray, tuple[float, float] | None]:
    """Samples `[H, W]` or `[H, W, channels]` of 16 bits, and which of them are black and white if the file says it.

    JPEG 2000 keeps its numbers; of its 15 and 16 bits satellites use a part. AVIF, always a photograph, gets all 16.
    """
    try:
        import imagecodecs
    except ImportError:
        raise ImageFileError(f"{kind} of more than 8 bits needs: pip install imagecodecs") from None
    top = 2.0 ** bit_depth(data, kind) - 1
    if kind == "AVIF":
        return np.round(imagecodecs.avif_decode(data) * (65535 / top)).astype(np.uint16), (0, 65535)
    return imagecodecs.jpeg2k_decode(data), (0, top) if top < 2**14 else None
