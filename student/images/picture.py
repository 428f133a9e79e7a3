"""What every reader of image files gives back, and the error that all of them raise."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from student.machine import free_bytes
from student.places import is_remote, read
from student.places.tars import member

BYTES_A_PIXEL = 32
"""Decoded, as float32 before and after, and encoded; what the network needs is not in it."""


class ImageFileError(ValueError):
    """A file that cannot be read, or not written as asked; the message is one line and names the remedy."""


class TooLittleMemory(ImageFileError):
    """A file that another machine, or this one at another time, can read."""


@dataclass(frozen=True)
class Picture:
    """A decoded file. `rgb` is `[n, H, W, 3]` float32 in [0, 1]: n = 1, or the slices of a medical volume.

    `encode(restored)` takes restored pixels of the same shape and returns the bytes of the whole output file. `kind`
    says in words what the file is and what the output will be, for the summary; `notes` what a user should know of it.
    """

    rgb: np.ndarray
    encode: Callable[[np.ndarray], bytes]
    kind: str
    notes: tuple[str, ...] = ()
    orientation: int = 1
    """How EXIF says that the pixels are to be turned, 1 to 8."""


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` `[H, W, C]` as stored → as EXIF's `orientation` says they are to be seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def is_far(path: str | Path) -> bool:
    """Whether reading a file is asking an object store for it."""
    return is_remote(inside.place if (inside := member(path)) else path)


def read_file(path: str | Path) -> bytes:
    """The bytes of a file, an object (`s3://...`) or a member of a tar (student/places/tars.py).

    Raises `ImageFileError` for a pipe or device, which might never end, and OSError.
    """
    if inside := member(path):
        return inside.content()
    if is_remote(path):
        return read(path)
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ImageFileError("no file but a pipe or device")
    return Path(path).read_bytes()


def check_size(width: int, height: int, max_pixels: int | None = None, pixel_bytes: int = BYTES_A_PIXEL) -> None:
    """A header of a few bytes may promise more pixels than there is memory for. Raises `ImageFileError`."""
    if max_pixels is not None and width * height > max_pixels:
        raise ImageFileError(f"{width}x{height} has more than {max_pixels} pixels")
    check_memory(f"{width}x{height}", pixel_bytes * width * height, "cut the picture into parts")


def check_memory(size: str, needed: int, remedy: str) -> None:
    """Raises `TooLittleMemory`, before the work."""
    if needed > 2**29 and needed > (free := free_bytes()):
        room = f"{size} pixels take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        raise TooLittleMemory(f"{room}; close other programs, take a larger machine, or {remedy}")
