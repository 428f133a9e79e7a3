"""Write a file whole or not at all."""

import os
from pathlib import Path


def write_bytes(file: Path, data: bytes) -> None:
    """Temporary file beside `file`, flush to disk, rename: a reader sees the old file, or the whole new one.

    Raises OSError (a full disk, no permission) with nothing left behind.
    """
    temporary = file.with_name(f".{file.name[:200]}.{os.getpid()}")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
