"""Replace a whole directory in one step: a crash at any point leaves the old one or the new one."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.schema import RELEASE_NAMES, ReleaseError


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `target`; when the block ends well, it takes the target's place.

    The swap is one system call (renameat2 with RENAME_EXCHANGE on Linux). Where the file system lacks it, the old
    folder is first renamed to `.NAME.previous`, and the next writer puts it back if the process died in between.
    A folder that holds anything but a release is refused rather than replaced.
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
        shutil.rmtree(folder, ignore_errors=True)  # what was not finished, or the release that was replaced
        os.close(lock)


def fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_place(folder: Path, target: Path) -> None:
    if not target.exists() or not any(target.iterdir()):
        os.rename(folder, target)  # POSIX lets a folder take the place of an empty one
    elif not _exchange(folder, target):
        previous = _previous(target)
        os.rename(target, previous)
        os.rename(folder, target)
        fsync(target.parent)
        shutil.rmtree(previous)
    fsync(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    if renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _recover(target: Path) -> None:
    """Undo what a killed writer left beside the target, unless that writer is alive."""
    import fcntl

    previous = _previous(target)
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
    foreign = sorted(path.name for path in target.iterdir() if not RELEASE_NAMES.fullmatch(path.name))
    if foreign:
        raise ReleaseError(f"{target}: holds {foreign[0]!r}, which is no part of a release; choose another folder")
