"""What is in one image file: hash, size, mode, range, or what is wrong with it. Worker processes import only this."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pipeline.indexing.marks import marks_of
from student.images.files import inspect, read_8_bit
from student.images.picture import ImageFileError, is_far, read_file

TOGETHER = 8
"""Objects that a process fetches at once: what it waits for is the way to the store."""


class Probe(NamedTuple):
    """One file, decoded whole, as every later stage decodes it. `error` is None for a good image, else names the file.

    `width` and `height` are of the upright image (EXIF). `mode` is Pillow's, with `;BITS` behind what Pillow would not
    tell from 8 bits. `low` and `high` are the numbers that are black and white, 0 and 0 for 8 bits.
    """

    sha256: str | None
    width: int
    height: int
    mode: str
    error: str | None
    low: float = 0.0
    high: float = 0.0
    marks: bytes | None = None
    """By which the same picture in another file is known (`pipeline.indexing.marks`), if asked for."""


def probe(path: str, max_pixels: int, marks: bool = False, reading: Callable[[], bytes] | None = None) -> Probe:
    """Read (or have it read: `reading`), hash and decode one file. Never raises for what is wrong with the file."""
    sha256 = None
    try:
        content = reading() if reading else read_file(path)
        if not content:
            raise ImageFileError("0 bytes; copy it again")
        sha256 = hashlib.sha256(content).hexdigest()
        width, height, mode, span = inspect(content, max_pixels)
        found = marks_of(read_8_bit(content, max_pixels)) if marks else None
    except OSError as error:
        return Probe(sha256, 0, 0, "", f"{path}: {error.strerror or 'cannot be read'}")
    except MemoryError:
        return Probe(sha256, 0, 0, "", f"{path}: not enough memory to decode it")
    except ImageFileError as error:
        limit = f"; index.max_pixels = {max_pixels}" if f"more than {max_pixels} pixels" in str(error) else ""
        return Probe(sha256, 0, 0, "", f"{path}: {error}{limit}")
    low, high = (span.low, span.high) if depth(mode) > 8 else (0.0, 0.0)
    return Probe(sha256, width, height, mode, None, low, high, found)


def probe_chunk(paths: list[str], max_pixels: int, marks: bool) -> list[Probe]:
    """`probe` for several files, for worker processes; what lies far away is fetched together."""
    if not any(map(is_far, paths)):
        return [probe(path, max_pixels, marks) for path in paths]
    found = []
    with ThreadPoolExecutor(TOGETHER) as threads:
        for some in (paths[start : start + TOGETHER] for start in range(0, len(paths), TOGETHER)):
            reads = [threads.submit(read_file, path) for path in some]
            found += [probe(path, max_pixels, marks, file.result) for path, file in zip(some, reads, strict=True)]
    return found


def depth(mode: str) -> int:
    """Bits a sample of a `Probe.mode`."""
    if ";" in mode:
        return int(mode.split(";")[1].split()[0])
    return 32 if mode[:1] in ("I", "F") else 1 if mode == "1" else 8
