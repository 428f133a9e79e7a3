"""PGM and PPM of 16 bits in and out: Pillow decodes such colour to 8 bits without a word, and scales gray."""

import re

import numpy as np

HEADER = re.compile(rb"P([2356])(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,5})\s")


def read_header(data: bytes) -> tuple[int, int, int, int, int] | None:
    """(kind, width, height, largest value, where the samples begin) of a file of 16 bits, else None.

    Kinds 2 and 3 are gray and colours as text, 5 and 6 as bytes.
    """
    if not (found := HEADER.match(data[:4096])) or not 255 < int(found[4]) < 65536:
        return None
    return int(found[1]), int(found[2]), int(found[3]), int(found[4]), found.end()


def read(data: bytes, header: tuple[int, int, int, int, int]) -> np.ndarray:
    """Samples `[H, W, channels]` uint16; raises ValueError for a file that is cut off."""
    kind, width, height, _, start = header
    channels = 1 if kind in (2, 5) else 3
    if kind > 3:
        samples = np.frombuffer(data, ">u2", width * height * channels, start)
    else:
        samples = np.array(re.sub(rb"#[^\n]*", b"", data[start:]).split()[: width * height * channels], np.int64)
    return samples.reshape(height, width, channels).astype(np.uint16)


def write(samples: np.ndarray, top: int = 65535) -> bytes:
    """The file of `samples` `[H, W, 1 or 3]` uint16."""
    height, width, channels = samples.shape
    return b"P%d %d %d %d\n" % (5 if channels == 1 else 6, width, height, top) + samples.astype(">u2").tobytes()
