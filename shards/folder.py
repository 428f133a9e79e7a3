"""A release as a folder: opened once, and sealed by its manifest."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shards.manifest import parse
from shards.remote import RemoteFile, asking, is_address, open_files, sha256_of
from shards.replace import previous_of
from shards.schema import BYSTANDERS, MANIFEST, RELEASE_NAMES, DamagedRelease, NoRelease, ReleaseError

_ATTEMPTS, _PAUSE = 100, 0.01  # a second in all, for a moment that takes microseconds


class Folder:
    """The files of a release as they were when it was opened: nothing is read by path afterwards.

    Every file is opened through one descriptor of the folder and mapped into memory. A mapping outlives the name: when
    the folder is replaced or removed, these bytes stay what they were.
    """

    def __init__(self, path: Path | str, filesystem: Any = None) -> None:
        self.path, self.filesystem = path, filesystem
        self.files: dict[str, np.ndarray | RemoteFile] = {}  # name → uint8 [bytes]
        self.strangers: list[str] = []
        self._inodes: list[tuple] = []
        if isinstance(path, str):  # in an object store
            self.place = path
            self.files, self.strangers, self._store = open_files(path, filesystem)
            self._read_manifest("")
            return
        self.place = os.path.abspath(path)
        if path.suffix == ".dir" and path.is_file():
            for name, file in _cached(path).items():
                self._add(name, file)
        elif path.is_dir():
            self._add_all()
        else:
            raise NoRelease(f"{path}: no such release; give its folder (after `dvc pull`) or a DVC entry `*.dir`")
        self._read_manifest(_left(path))

    def _read_manifest(self, left: str) -> None:
        if MANIFEST not in self.files:
            raise DamagedRelease(f"{self.path}: no {MANIFEST}; not a release, or its writing never finished{left}")
        self._sealed = self.files[MANIFEST].tobytes()
        self.manifest = parse(self._sealed, f"{self.path}/{MANIFEST}")
        self.listed = {entry["file"]: entry for entry in [*self.manifest["parts"], *self.manifest["files"]]}

    def check(self) -> None:
        """To be called after reading. Mapped files stay what they were; objects are replaced only after their manifest
        has gone, so what was read while it stood is of this release. Raises ReleaseError."""
        if isinstance(self.path, str):
            files, path = self._store
            with asking(self.path):
                info = files.get_file_info(f"{path}/{MANIFEST}")
            if not info.is_file or RemoteFile(files, info.path, info.size).tobytes() != self._sealed:
                raise ReleaseError(f"{self.path}: replaced since it was opened; open it again")

    @property
    def stamp(self) -> str:
        """sha256 that changes with the release and with every inode, size or time of its files."""
        state = [self.manifest["manifest_sha256"], self.place, *sorted(self._inodes)]
        return hashlib.sha256(repr(state).encode(errors="surrogateescape")).hexdigest()

    def lacks(self, name: str) -> str | None:
        """Why a file that the manifest names cannot be what it names, judged by its size alone."""
        if name not in self.files:
            return f"{name}: missing, although the manifest names it"
        size, told = len(self.files[name]), self.listed[name]["bytes"]
        return None if size == told else f"{name}: {size} bytes instead of {told}"

    def altered(self, name: str) -> str | None:
        """The same, judged by every byte."""
        if problem := self.lacks(name):
            return problem
        found = sha256_of(self.files[name])
        return None if found == self.listed[name]["sha256"] else f"{name}: altered (its sha256 is {found})"

    def _add_all(self) -> None:
        with _reporting(self.path):
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name in sorted(os.listdir(folder)):
                    if RELEASE_NAMES.fullmatch(name):
                        self._add(name, self.path / name, folder)
                    elif not BYSTANDERS.fullmatch(name):
                        self.strangers.append(name)
            finally:
                os.close(folder)

    def _add(self, name: str, file: Path, folder: int | None = None) -> None:
        with _reporting(file):
            # O_NONBLOCK: a named pipe must not stop the reader for ever.
            flags = os.O_RDONLY | os.O_NONBLOCK
            handle = os.open(file, flags) if folder is None else os.open(name, flags, dir_fd=folder)
            try:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    raise DamagedRelease(f"{file}: not a plain file; pull the release again")
                mapped = mmap.mmap(handle, 0, access=mmap.ACCESS_READ) if status.st_size else b""
            finally:
                os.close(handle)
        self.files[name] = np.frombuffer(mapped, np.uint8)
        times = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        self._inodes.append((name, status.st_dev, status.st_ino, *times))


def open_folder(path: str | Path, filesystem: Any = None) -> Folder:
    """Open a folder, a directory entry (`*.dir`) of a DVC cache, or an address; again, if it was being replaced
    meanwhile. `filesystem`: of pyarrow or fsspec, for a path in it.

    Raises ReleaseError (nothing there, another format version) and DamagedRelease (no manifest, or an altered one).
    """
    if filesystem is not None or is_address(path):
        return Folder(str(path), filesystem)
    path = Path(path)
    for _ in range(_ATTEMPTS):
        before = _identity(path)
        try:
            folder = Folder(path)
            problems = [problem for name in folder.listed if (problem := folder.lacks(name))]
            if not problems or _identity(path) == before:
                return folder
        except ReleaseError:
            waits = before is None and previous_of(path).is_dir()  # between the writer's two renames
            if _identity(path) == before and not waits:
                raise
        time.sleep(_PAUSE)
    return Folder(path)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextmanager
def _reporting(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise DamagedRelease(f"{path}: cannot be opened ({reason}); check it, or pull the release again") from None


def _cached(path: Path) -> dict[str, Path]:
    """Name → place in the DVC cache of the files that a `*.dir` entry lists."""
    try:
        cache, found = path.parent.parent, {}
        for entry in json.loads(path.read_bytes()):
            name, md5 = entry["relpath"], entry["md5"]
            if RELEASE_NAMES.fullmatch(name) and re.fullmatch("[0-9a-f]{32}", md5):
                found[name] = cache / md5[:2] / md5[2:]
        return found
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamagedRelease(f"{path}: not a directory entry of a DVC cache ({error}); run dvc fetch again") from None


def _left(path: Path) -> str:
    previous = previous_of(path)
    return f" (an earlier one stands in {previous})" if previous.is_dir() else ""
