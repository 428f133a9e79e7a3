"""A file is written whole or not at all. `shards` keeps its own way, so that it needs nothing of ours."""

import contextlib
import os
from pathlib import Path
from unicodedata import category


def printable(name: str) -> str:
    """`name` as text that every file and terminal can take: bytes that are no UTF-8, and control characters, which a
    terminal would obey, become `\\xe9` and the like."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c.encode("unicode_escape").decode() if category(c) == "Cc" else c for c in text)


def no_formula(cell: object) -> object:
    """`cell` of a table: a spreadsheet takes a text that begins like this for a formula, unless after an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(tuple("=+-@\t\r")) else cell


class NotWritten(OSError):
    """A file could not be written; what stood there before still stands there."""

    def __str__(self) -> str:
        return f"{self.filename}: cannot be written: {self.strerror}; what was written before is kept"


def write_file(file: Path, content: bytes | str) -> None:
    """Temporary file beside `file`, flush to disk, rename: a reader sees the old file, or the whole new one.

    Missing folders are made; text is UTF-8. Raises `NotWritten` (a full disk, no permission) with nothing left behind.
    """
    # A name may have 255 bytes, not characters; cut within a character, it would be no name on some file systems.
    name = file.name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")
    temporary = file.with_name(f".{name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        publish(temporary, file)
    except OSError as error:
        raise NotWritten(error.errno, error.strerror or str(error), str(file)) from error
    finally:
        with contextlib.suppress(OSError):  # where its folder is a file, say
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, file: Path) -> None:
    """Make a finished temporary file the real one; the rename itself survives a power cut."""
    flush(temporary)
    os.replace(temporary, file)
    with contextlib.suppress(OSError):  # some network disks refuse to flush a folder; the file is there all the same
        flush(file.parent)


def flush(path: Path) -> None:
    """Flush a file or a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
