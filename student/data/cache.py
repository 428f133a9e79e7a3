"""Decoded images for training: read afresh, kept in memory, or in one memory-mapped file that processes share."""

import contextlib
import fcntl
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from student.data.pairs import TrainDataError
from student.images.files import read_rgb
from student.images.picture import ImageFileError, read_file
from student.images.sample_values import given_range

Ranges = dict[str, tuple[float, float]]
"""File → the numbers that are black and white, the same for both images of a pair."""


def decode(path: str, ranges: Ranges | None = None) -> np.ndarray:
    """RGB `[3, H, W]`, uint8 where that is exact (three quarters less memory), else float32 in [0, 1]."""
    ends = (ranges or {}).get(path)
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


class FreshImages:
    """No cache: every access decodes the file."""

    def __init__(self, ranges: Ranges | None = None):
        self._ranges = ranges

    def __getitem__(self, path: str) -> np.ndarray:
        return decode(path, self._ranges)


class MemoryImages:
    """All images decoded once, in this process; forked workers share the memory."""

    def __init__(self, paths: Iterable[str], ranges: Ranges | None = None):
        names = sorted(set(paths))
        self._images = dict(zip(names, _decode_all(names, ranges), strict=True))

    def __getitem__(self, path: str) -> np.ndarray:
        return self._images[path]


class MappedImages:
    """All images decoded once into one file under `folder`, mapped read-only: its memory is the page cache, shared by
    all processes of a machine. The file's name is the fingerprint of what it holds."""

    def __init__(self, paths: Iterable[str], folder: str | Path, fingerprint: str, ranges: Ranges | None = None):
        names, self._ranges = sorted(set(paths)), ranges
        key = hashlib.sha256(json.dumps([fingerprint, names]).encode()).hexdigest()[:16]
        self._file, table = Path(folder) / f"{key}.pixels", Path(folder) / f"{key}.json"
        if not table.exists():
            self._build(names, table)
        self._places = json.loads(table.read_text(encoding="utf-8"))
        self._pixels: np.memmap | None = None

    def _build(self, names: list[str], table: Path) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        # One process decodes and the others wait for it. Where locks do not reach (some network file systems) several
        # write the same bytes; each renames its own, and the table comes last.
        with open(table.with_suffix(".lock"), "w") as lock:
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
                for left_by_a_kill in self._file.parent.glob(f"{self._file.stem}.*.tmp"):
                    left_by_a_kill.unlink()
            if not table.exists():
                self._write(names, table)

    def _write(self, names: list[str], table: Path) -> None:
        temporary = self._file.with_suffix(f".{uuid.uuid4().hex}.tmp")
        places, offset = {}, 0
        with open(temporary, "wb") as file:
            for name, pixels in zip(names, _decode_all(names, self._ranges), strict=True):
                places[name] = [offset, pixels.dtype.name, *pixels.shape]
                offset += file.write(pixels.tobytes()) + file.write(bytes(-pixels.nbytes % 8))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._file)
        temporary.write_text(json.dumps(places), encoding="utf-8")
        os.replace(temporary, table)

    def __getitem__(self, path: str) -> np.ndarray:
        if self._pixels is None:
            self._pixels = np.memmap(self._file, mode="r")
        offset, dtype, *shape = self._places[path]
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.asarray(self._pixels[offset : offset + count]).view(dtype).reshape(shape)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_pixels": None}  # a worker process opens the file itself


def open_images(mode: str, paths: Iterable[str], folder: str | Path, fingerprint: str, ranges: Ranges | None = None):
    """The cache that `train.cache_images` names: an object with `[path] -> [3, H, W]`."""
    if mode == "memory":
        return MemoryImages(paths, ranges)
    return MappedImages(paths, folder, fingerprint, ranges) if mode == "memmap" else FreshImages(ranges)


def _decode_all(names: list[str], ranges: Ranges | None, group: int = 64) -> Iterator[np.ndarray]:
    """Decoded in threads, `group` at a time, so that images do not pile up before they are written."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(names), group):
            yield from threads.map(lambda name: decode(name, ranges), names[start : start + group])
