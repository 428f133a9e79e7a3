"""A release as a folder: opened once, sealed by its manifest, and replaced as a whole."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shards.manifest import parse
from shards.schema import BYSTANDERS, MANIFEST, RELEASE_NAMES, DamagedRelease, ReleaseError

_ATTEMPTS, _PAUSE = 100, 0.01  # a second in all, for a moment that takes microseconds


class Folder:
    """The files of a release as they were when it was opened: nothing is read by path afterwards.

    Every file is opened through one descriptor of the folder and mapped into memory. A mapping outlives the name: when
    the folder is replaced or removed, these bytes stay what they were.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, os.path.abspath(path)
        self.files: dict[str, np.ndarray] = {}  # name → uint8 [bytes]
        self.strangers: list[str] = []
        self._inodes: list[tuple] = []
        if path.suffix == ".dir" and path.is_file():
            for name, file in _cached(path).items():
                self._add(name, file)
        elif path.is_dir():
            self._add_all()
        else:
            raise ReleaseError(f"{path}: no such release; give its folder (after `dvc pull`) or a DVC entry `*.dir`")
        if MANIFEST not in self.files:
            raise DamagedRelease(f"{path}: no {MANIFEST}; not a release, or its writing never finished{_left(path)}")
        self.manifest = parse(self.files[MANIFEST].tobytes(), path / MANIFEST)
        self.listed = {entry["file"]: entry for entry in [*self.manifest["parts"], *self.manifest["files"]]}

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
        found = hashlib.sha256(self.files[name]).hexdigest()
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


def open_folder(path: str | Path) -> Folder:
    """Open a folder or a directory entry (`*.dir`) of a DVC cache; again, if it was being replaced meanwhile.

    Raises ReleaseError (nothing there, another format version) and DamagedRelease (no manifest, or an altered one).
    """
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


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `target`; when the block ends well, it takes the target's place.

    Two renames: the old folder to `.NAME.previous`, the new one to its name. Each shows a whole release or none; a
    reader that comes between them waits, and if the process dies there, the next writer puts the old one back. A folder
    that holds anything but a release is refused rather than replaced.
    """
    import fcntl

    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    _refuse_foreign(target)
    folder = target.with_name(f".{target.name}.staging-{secrets.token_hex(6)}")
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # dies with the process: tells a live writer's folder from a dead one's
        yield folder
        for path in folder.iterdir():
            fsync(path)
        fsync(folder)
        _refuse_foreign(target)
        _take_place(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what was not finished
        os.close(lock)


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_place(folder: Path, target: Path) -> None:
    previous = previous_of(target)
    if target.exists():
        for path in target.iterdir():
            if BYSTANDERS.fullmatch(path.name) and path.is_file():
                shutil.copy2(path, folder / path.name)
        os.rename(target, previous)
    try:
        os.rename(folder, target)
    except OSError:
        if previous.exists():
            os.rename(previous, target)
        raise
    fsync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def previous_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _left(path: Path) -> str:
    previous = previous_of(path)
    return f" (an earlier one stands in {previous})" if previous.is_dir() else ""


def _recover(target: Path) -> None:
    """Undo what a killed writer left beside the target, unless that writer is alive."""
    import fcntl

    previous = previous_of(target)
    if previous.is_dir():
        if target.exists() and any(target.iterdir()):
            shutil.rmtree(previous)
        else:
            os.rename(previous, target)
    for folder in target.parent.glob(f".{target.name}.staging-*"):
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ReleaseError(f"{target}: is a file; a release is a folder")
    for name in sorted(path.name for path in target.iterdir()):
        if not (RELEASE_NAMES.fullmatch(name) or BYSTANDERS.fullmatch(name)):
            raise ReleaseError(f"{target}: holds {name!r}, which is no part of a release; choose another folder")
