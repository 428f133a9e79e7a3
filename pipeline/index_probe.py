"""What is in an image file: hash, size, mode, or what is wrong with it; remembered by (path, size, mtime)."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

WINDOW = 4096
"""Files in flight at once: what bounds the memory."""


class Probe(NamedTuple):
    """One file, decoded whole once. `error` is None for a good image."""

    path: str
    bytes: int
    mtime_ns: int
    sha256: str | None
    width: int
    height: int
    mode: str
    error: str | None


SCHEMA = pa.schema(
    [("path", pa.string()), ("bytes", pa.int64()), ("mtime_ns", pa.int64()), ("sha256", pa.string())]
    + [("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string()), ("error", pa.string())]
)


class ProbeCache:
    """Probes of earlier runs, in one parquet file that is replaced as a whole. A damaged file is started anew."""

    def __init__(self, file: Path):
        self.file, self.fresh = file, 0
        self._rows: dict[str, Probe] = {}
        try:
            table = pq.read_table(file, schema=SCHEMA, page_checksum_verification=True, partitioning=None)
        except (OSError, pa.ArrowException):
            return  # it is a cache: everything in it can be found again
        for batch in table.to_batches(max_chunksize=65536):
            self._rows.update((row[0], Probe(*row)) for row in zip(*(c.to_pylist() for c in batch), strict=True))

    def get(self, path: str, stat: os.stat_result) -> Probe | None:
        probe = self._rows.get(path)
        return probe if probe and (probe.bytes, probe.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else None

    def put(self, probe: Probe) -> None:
        self._rows[probe.path] = probe
        self.fresh += 1

    def save(self) -> None:
        if not self.fresh:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        columns = zip(*self._rows.values(), strict=True)
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
        write_table(table, self.file)
        self.fresh = 0


def write_table(table: pa.Table, file: Path) -> None:
    """Parquet with page checksums, whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def probe_all(paths: Iterable[str], cache: ProbeCache, workers: int, max_pixels: int) -> Iterator[Probe]:
    """Probe files in order, several at once, at most WINDOW ahead of the consumer."""
    from PIL import Image

    def look(path: str) -> tuple[Probe, bool]:
        try:
            stat = os.stat(path)
        except OSError as error:
            return Probe(path, 0, 0, None, 0, 0, "", f"{path}: {error.strerror}"), False
        known = cache.get(path, stat)
        return (known, False) if known else (probe(path, stat, max_pixels), True)

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels decides
    # Threads are enough: hashing and decoding release the interpreter lock.
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        paths = iter(paths)
        while window := list(islice(paths, WINDOW)):
            for found, fresh in pool.map(look, window):
                if fresh:
                    cache.put(found)
                yield found


def probe(path: str, stat: os.stat_result, max_pixels: int) -> Probe:
    """Read, hash and decode one file. Never raises for what is wrong with the file."""
    from PIL import Image

    def bad(reason: str, sha256: str | None = None) -> Probe:
        return Probe(path, stat.st_size, stat.st_mtime_ns, sha256, 0, 0, "", f"{path}: {reason}")

    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return bad(error.strerror or "cannot be read")
    if not content:
        return bad("0 bytes; copy it again")
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > max_pixels:
                return bad(f"{image.width}x{image.height} pixels, more than index.max_pixels = {max_pixels}", sha256)
            image.load()
            width, height, mode = image.width, image.height, image.mode
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError ... for broken files
        return bad(f"cannot be decoded ({' '.join(str(error).split())}); copy it again or remove it", sha256)
    return Probe(path, stat.st_size, stat.st_mtime_ns, sha256, width, height, mode, None)
