"""Write a file whole or not at all."""

import os
from pathlib import Path


def write_bytes(file: Path, data: bytes) -> None:
    """Temporary file beside `file`, flush to disk, rename: a reader sees the old file, or the whole new one.

    Raises OSError (a full disk, no permission) with nothing left behind.
    """
    # A name may have 255 bytes, not characters; cut within a character, it would be no name on some file systems.
    name = file.name.encode("utf-8", "surrogateescape")[:200].decode("utf-8", "ignore")
    temporary = file.with_name(f".{name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
