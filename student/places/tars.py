"""Files inside tar archives, as WebDataset keeps them: each has an address, and its bytes are read without the rest.

`tar:PLACE#OFFSET+SIZE/NAME` is the member NAME of the archive at PLACE (a path, or an address such as `s3://...`).
"""

import re
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from student.images.formats import is_hidden
from student.places import Stamp, asking, is_remote, read, remote, stamp

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
AHEAD = 1 << 16
"""Bytes fetched with a header of a remote archive: the small files between pictures come along."""
_MEMBER = re.compile(r"tar:(.+?\.tar)#(\d+)\+(\d+)/(.+)", re.DOTALL | re.IGNORECASE)


class Member(NamedTuple):
    place: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"tar:{self.place}#{self.offset}+{self.size}/{self.name}"

    def content(self) -> bytes:
        """Its bytes; raises `OSError`, also where the archive has become shorter."""
        found = read(self.place, self.offset, self.offset + self.size) if self.size else b""
        if len(found) != self.size:
            raise OSError(None, f"{self.place} ends before this member; run the index stage again")
        return found


def member(path: str | Path) -> Member | None:
    """What an address of a member says; None for any other path."""
    found = _MEMBER.fullmatch(path) if isinstance(path, str) else None
    return found and Member(found[1], int(found[2]), int(found[3]), found[4])


def members(place: str) -> list[Member]:
    """The files in an archive, in its order; only headers are read. Hidden files are left out, as in folders.

    Raises `OSError` (it cannot be read) and `ValueError` (compressed, cut off or no archive) with the remedy.
    """
    if place.lower().endswith(COMPRESSED):
        raise ValueError(f"{place}: compressed, so no member can be read without all before it; unpack it to a .tar")
    return _members(place, stamp(place))


@lru_cache(10_000)
def _members(place: str, _stamp: Stamp | None) -> list[Member]:
    with asking(place):
        if is_remote(place):
            files, path = remote(place)
            opened = files.open(path, "rb", block_size=AHEAD, cache_type="readahead")
        else:
            opened = open(place, "rb")
        with opened as file:
            try:
                archive = tarfile.open(fileobj=file, mode="r:")
                found = [entry for entry in archive if entry.isreg() and entry.sparse is None]
                file.seek(archive.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0") or file.tell() < archive.offset + tarfile.BLOCKSIZE:
                    raise tarfile.ReadError(f"it ends, or is damaged, at byte {archive.offset}")
            except tarfile.TarError as error:
                begin = read(place, 0, 6)
                packed = begin.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
                remedy = "it is compressed: unpack it to a plain .tar" if packed else "copy it again"
                raise ValueError(f"{place}: not a whole tar archive ({error}); {remedy}") from None
    named = [(entry.name.removeprefix("./").lstrip("/"), entry) for entry in found]
    return [
        Member(place, entry.offset_data, entry.size, name)
        for name, entry in named
        if not any(map(is_hidden, name.split("/")))
    ]
