"""A place is a path of this machine, or the address of an object store such as `s3://bucket/folder` (extra `s3`).

Credentials, endpoints and regions are the object store's own business (for S3 the variables AWS_*, such as
AWS_ENDPOINT_URL). Places are text: `pathlib.Path` would make one slash of two.
"""

import os
import posixpath
from pathlib import Path
from typing import Any

from student.files import NotWritten, write_file


def is_remote(place: str | Path) -> bool:
    """Whether `place` is an address and no path of this machine."""
    return "://" in str(place)


def remote(place: str) -> tuple[Any, str]:
    """The file system (fsspec) of an address, and the path within it. Raises `OSError` naming a missing package."""
    try:
        import fsspec

        return fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:  # no package for this scheme, or no such scheme
        scheme = place.partition("://")[0]
        raise OSError(
            f"{place}: {error}; for s3:// run pip install 'teachonce[s3]'; {scheme}:// needs fsspec"
        ) from None


def join(place: str | Path, *names: str) -> str:
    """`place` and the names below it."""
    return posixpath.join(str(place), *names) if is_remote(place) else os.path.join(place, *names)


def read(place: str | Path, start: int = 0, end: int | None = None) -> bytes:
    """The bytes `[start, end)` of a file, by default all; raises `OSError` (`FileNotFoundError` where it is not)."""
    if is_remote(place):
        files, path = remote(str(place))
        return files.cat_file(path, start=start or None, end=end)
    with open(place, "rb") as file:
        file.seek(start)
        return file.read() if end is None else file.read(end - start)


def listed(folder: str | Path, suffix: str = "") -> list[str]:
    """Names of the files in `folder` (not below it) that end with `suffix`, sorted; none where there is no folder."""
    try:
        if is_remote(folder):
            files, path = remote(str(folder))
            files.invalidate_cache(path)  # what another machine has just written counts
            names = [
                entry["name"].rpartition("/")[2] for entry in files.ls(path, detail=True) if entry["type"] == "file"
            ]
        else:
            with os.scandir(folder) as entries:
                names = [entry.name for entry in entries if not entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if name and name.endswith(suffix))


def exists(place: str | Path) -> bool:
    """Whether a file or folder is there."""
    if is_remote(place):
        files, path = remote(str(place))
        files.invalidate_cache(path)
        return files.exists(path)
    return os.path.exists(place)


def write_whole(place: str | Path, content: bytes | str) -> None:
    """A file, whole or not at all: on a disk as `student.files.write_file`, in an object store by one call.

    A stream would not do: one that dies publishes what it had. Raises `NotWritten`.
    """
    if not is_remote(place):
        return write_file(Path(place), content)
    files, path = remote(str(place))
    try:
        files.pipe_file(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(place)) from error


def remove(place: str | Path) -> None:
    """Remove a file; it may be gone already."""
    try:
        if is_remote(place):
            files, path = remote(str(place))
            files.rm_file(path)
        else:
            os.unlink(place)
    except FileNotFoundError:
        pass
