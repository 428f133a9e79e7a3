"""A place is a path of this machine, or the address of an object store such as `s3://bucket/folder` (extra `s3`).

Credentials, endpoints and regions are the object store's own business (for S3 the variables AWS_*, such as
AWS_ENDPOINT_URL). Places are text: `pathlib.Path` would make one slash of two.
"""

import errno
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from student.files import NotWritten, write_file

Stamp = tuple[int, int, int, int]
"""What changes when a file is replaced: size, two times in ns and inode; of an object size, time, ETag and 0."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_remote(place: str | Path) -> bool:
    """Whether `place` is an address and no path of this machine."""
    return bool(_ADDRESS.match(str(place)))


def remote(place: str) -> tuple[Any, str]:
    """The file system (fsspec) of an address, and the path within it. Raises `OSError` naming a missing package."""
    files = _files("/".join(place.split("/", 3)[:3]), os.getpid())
    return files, files._strip_protocol(place)


@lru_cache(64)
def _files(start: str, process: int) -> Any:
    """One for all threads: fsspec itself would log in anew in each."""
    try:
        import fsspec

        options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
        if start.startswith("s3") and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
            # s3fs tries five times, and by default botocore five times in each: seven minutes for a store that hangs.
            options["config_kwargs"] = {"retries": {"total_max_attempts": 2}}
        return fsspec.core.url_to_fs(start, **options)[0]
    except (ImportError, ValueError) as error:  # no package for this scheme, or no such scheme
        scheme = start.partition("://")[0]
        raise OSError(
            f"{start}: {error}; for s3:// run pip install 'teachonce[s3]'; {scheme}:// needs fsspec"
        ) from None


@contextmanager
def asking(place: str | Path) -> Iterator[None]:
    """What libraries of object stores raise, as an `OSError` of one line with `strerror` and the remedy."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, TypeError | AttributeError | LookupError)
        if ours or not is_remote(place) or isinstance(error, OSError) and error.filename:
            raise
        told = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, FileNotFoundError):
            told = told if "bucket" in told else "no such object"
            raise FileNotFoundError(errno.ENOENT, told, str(place)) from error
        credentials = isinstance(error, PermissionError) or "redential" in type(error).__name__ + told
        if credentials:
            told += "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            told += "; for a public bucket FSSPEC_S3='{\"anon\": true}'"
        elif "onnect" in type(error).__name__ + told or "imeout" in type(error).__name__ + told:
            told += "; is AWS_ENDPOINT_URL right, and the store up?"
        raise OSError(errno.EACCES if credentials else errno.EIO, told, str(place)) from error


def _asked(place: str | Path, what: str, *arguments: Any) -> Any:
    """What the file system of an address does; raises `OSError`."""
    with asking(place):
        files, path = remote(str(place))
        return getattr(files, what)(path, *arguments)


def join(place: str | Path, *names: str) -> str:
    """`place` and the names below it."""
    return posixpath.join(str(place), *names) if is_remote(place) else os.path.join(place, *names)


def read(place: str | Path, start: int = 0, end: int | None = None) -> bytes:
    """The bytes `[start, end)` of a file, by default all; raises `OSError` (`FileNotFoundError` where it is not)."""
    if is_remote(place):
        with asking(place):
            files, path = remote(str(place))
            try:
                return files.cat_file(path, start=start or None, end=end)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a range beyond the end
                    raise
                return b""
    with open(place, "rb") as file:
        file.seek(start)
        return file.read() if end is None else file.read(end - start)


def entries(folder: str | Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in a folder (not below it), sorted; raises `OSError`."""
    if is_remote(folder):
        there = [(entry["name"].rstrip("/").rpartition("/")[2], entry["type"]) for entry in _asked(folder, "ls", True)]
        inside = str(folder).rstrip("/").rpartition("/")[2]  # a store may keep an empty object in place of the folder
        found = [(name, kind == "directory") for name, kind in there if name and (kind, name) != ("file", inside)]
    else:
        with os.scandir(folder) as inside:
            found = [(entry.name, entry.is_dir()) for entry in inside]
    return sorted(name for name, is_folder in found if is_folder), sorted(name for name, is_ in found if not is_)


def listed(folder: str | Path, suffix: str = "") -> list[str]:
    """Names of the files in `folder` (not below it) that end with `suffix`, sorted; none where there is no folder."""
    try:
        return [name for name in entries(folder)[1] if name.endswith(suffix)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def below(folder: str) -> dict[str, Stamp | None]:
    """All objects below an address, however deep: their names relative to it, sorted, and stamps. One list of a
    thousand a request; raises `OSError`."""
    with asking(folder):
        files, path = remote(folder)
        start = path.rstrip("/") + "/"
        found = files.find(path, detail=True)
        return {name[len(start) :]: _stamp(found[name]) for name in sorted(found) if name.startswith(start)}


def stamp(place: str | Path) -> Stamp | None:
    """What changes when the file is replaced, also by `cp -p` or `rsync -t`; None where there is no such file, or the
    store does not tell."""
    try:
        if is_remote(place):
            return _stamp(_asked(place, "info"))
        facts = os.stat(place)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def _stamp(facts: dict[str, Any]) -> Stamp | None:
    tag = facts.get("ETag") or facts.get("etag") or facts.get("md5Hash")
    if tag:  # of bytes, not of when they were copied
        return facts["size"], 0, int.from_bytes(hashlib.sha256(str(tag).encode()).digest()[:8], "big"), 0
    changed = next((facts[key] for key in ("LastModified", "last_modified", "updated", "mtime") if facts.get(key)), 0)
    changed = datetime.fromisoformat(changed) if isinstance(changed, str) else changed
    seconds = int(changed.timestamp()) if isinstance(changed, datetime) else int(changed)
    return (facts["size"], seconds * 10**9, 0, 0) if seconds else None


def exists(place: str | Path) -> bool:
    """Whether a file or folder is there."""
    return _asked(place, "exists") if is_remote(place) else os.path.exists(place)


def is_folder(place: str | Path) -> bool:
    """Whether there is a folder; in an object store, whether anything lies below the address."""
    return _asked(place, "isdir") if is_remote(place) else os.path.isdir(place)


def write_whole(place: str | Path, content: bytes | str) -> None:
    """A file, whole or not at all: on a disk as `student.files.write_file`, in an object store by one call.

    A stream would not do: one that dies publishes what it had. Raises `NotWritten`.
    """
    if not is_remote(place):
        return write_file(Path(place), content)
    try:
        _asked(place, "pipe_file", content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(place)) from error


def remove(place: str | Path) -> None:
    """Remove a file; it may be gone already."""
    with suppress(FileNotFoundError):
        if is_remote(place):
            _asked(place, "rm_file")
        else:
            os.unlink(place)
