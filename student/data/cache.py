"""Decoded images for training: read afresh, kept in memory, or kept as `.npy` files that processes share."""

import hashlib
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from student.data.pairs import Pairs, Ranges, TrainDataError
from student.data.resize import enlarge
from student.files import publish
from student.images.files import read_rgb
from student.images.picture import ImageFileError, read_file
from student.images.sample_values import given_range
from student.places import is_remote, stamp
from student.places.tars import member


def decode(path: str, ends: tuple[float, float] | None = None) -> np.ndarray:
    """RGB `[3, H, W]`, uint8 where that is exact (three quarters less memory), else float32 in [0, 1].

    `ends`: the numbers that are black and white, where the file has more than 8 bits.
    """
    try:
        pixels = read_rgb(read_file(path), given_range(*ends) if ends else None)
    except (OSError, ImageFileError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise TrainDataError(f"{path}: {reason}; run the index stage again (python -m pipeline.index)") from None
    bytes_ = np.round(pixels * 255).astype(np.uint8)
    return bytes_ if np.array_equal(bytes_.astype(np.float32) / 255, pixels) else pixels


def as_float(pixels: np.ndarray) -> np.ndarray:
    """float32 in [0, 1] of what `decode` gave."""
    return pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else np.asarray(pixels)


class Enlarged:
    """An image `[3, H, W]`, as `decode` gives it, enlarged only where it is looked at: `enlarged[:, rows, columns]` is
    that place of the whole image enlarged."""

    def __init__(self, small: np.ndarray, scale: int):
        self.small, self.scale = small, scale
        self.shape = (small.shape[0], *(scale * side for side in small.shape[1:]))

    def __getitem__(self, where: tuple[slice, slice, slice]) -> np.ndarray:
        cut, inside = [where[0]], [slice(None)]
        for part, side, large in zip(where[1:], self.small.shape[1:], self.shape[1:], strict=True):
            start, stop, _ = part.indices(large)
            # the cubic kernel reaches two pixels of the small image to either side
            first, last = max(start // self.scale - 3, 0), min(-(-stop // self.scale) + 3, side)
            cut.append(slice(first, last))
            inside.append(slice(start - first * self.scale, stop - first * self.scale))
        return enlarge(self.small[tuple(cut)].transpose(1, 2, 0), self.scale).transpose(2, 0, 1)[tuple(inside)]


class FreshImages:
    """No cache: every access decodes the file."""

    def __init__(self, ranges: Ranges):
        self.ranges = ranges

    def __getitem__(self, path: str) -> np.ndarray:
        return decode(path, self.ranges.get(path))


class MappedImages(FreshImages):
    """Every image is decoded by the first process that asks for it, into a `.npy` file of `folder` that all then map:
    its memory is the page cache of the machine. A file that changed on disk is decoded again; of objects and members of
    tars a process asks that once."""

    def __init__(self, ranges: Ranges, folder: str):
        super().__init__(ranges)
        self.folder = Path(folder)
        self._asked: dict[str, tuple | None] = {}

    def __getitem__(self, path: str) -> np.ndarray:
        facts = self._facts(path)
        if facts is None:
            return super().__getitem__(path)  # which names the file and the remedy
        key = repr((*facts, self.ranges.get(path)))
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f"{uuid.uuid4().hex}.tmp.npy"
            np.save(temporary, super().__getitem__(path))
            publish(temporary, file)
        return np.load(file, mmap_mode="r")

    def _facts(self, path: str) -> tuple | None:
        """Where a file is, and what changes with its content."""
        inside = member(path)
        if not (inside or is_remote(path)):
            facts = stamp(path)
            return facts and (os.path.abspath(path), *facts[:2])
        if path not in self._asked:
            facts = stamp(inside.place if inside else path)
            self._asked[path] = facts and (path, *facts)
        return self._asked[path]


Images = FreshImages | dict[str, np.ndarray]
"""`images[path]` is what `decode` gives of the file."""


def open_images(mode: str, pairs: Pairs, folder: str) -> Images:
    """The cache that `train.cache_images` names."""
    fresh = FreshImages(pairs.ranges)
    if mode == "memory":  # forked workers share it
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            return dict(zip(pairs.files, threads.map(fresh.__getitem__, pairs.files), strict=True))
    return MappedImages(pairs.ranges, folder) if mode == "memmap" else fresh
