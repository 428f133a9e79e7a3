"""A release's folder is replaced as a whole."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from shards.remote import is_address, staged_remote
from shards.schema import BYSTANDERS, RELEASE_NAMES, ReleaseError


@contextmanager
def staged(target: str | Path) -> Iterator[Path]:
    """Yield a fresh folder beside `target`; when the block ends well, it takes the target's place.

    An address: as `shards.remote.staged_remote` does it. A folder:

    Two renames: the old folder to `.NAME.previous`, the new one to its name. Each shows a whole release or none; a
    reader that comes between them waits, and if the process dies there, the next writer puts the old one back. A folder
    that holds anything but a release is refused rather than replaced. Of several writers the last one stays.
    """
    if is_address(target):
        with staged_remote(str(target)) as folder:
            yield folder
        return
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = target.with_name(f".{target.name}.staging-{secrets.token_hex(6)}")
    with ExitStack() as held:
        with _lock(target.parent):
            _recover(target)
            _refuse_foreign(target)
            folder.mkdir()
            held.callback(shutil.rmtree, folder, ignore_errors=True)  # what was not finished
            held.enter_context(_lock(folder))  # tells a live writer's folder from a dead one's
        yield folder
        for path in folder.iterdir():
            fsync(path)
        fsync(folder)
        with _lock(target.parent):
            _refuse_foreign(target)
            _take_place(folder, target)


@contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder's lock, which dies with the process; raises BlockingIOError where another has it, unless `wait`."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


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


def _recover(target: Path) -> None:
    """Undo what a killed writer left beside the target, unless that writer is alive."""
    previous = previous_of(target)
    if previous.is_dir():
        if target.exists() and any(target.iterdir()):
            shutil.rmtree(previous)
        else:
            os.rename(previous, target)
    for folder in target.parent.glob(f".{target.name}.staging-*"):
        with suppress(BlockingIOError, FileNotFoundError), _lock(folder, wait=False):
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ReleaseError(f"{target}: is a file; a release is a folder")
    for name in sorted(path.name for path in target.iterdir()):
        if not (RELEASE_NAMES.fullmatch(name) or BYSTANDERS.fullmatch(name)):
            raise ReleaseError(f"{target}: holds {name!r}, which is no part of a release; choose another folder")
