"""What is known of image files: one parquet file, a row a good image, so that an unchanged file is read once."""

from collections.abc import Generator, Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.indexing import folders
from pipeline.indexing.probe import Probe, probe_chunk
from student.files import write_file
from student.images.workers import FileGivenUp, ImageWorkers
from student.places import Stamp, stamp
from student.places.tars import member

WINDOW = 8192
"""Files in flight at once: what bounds the memory."""
CHUNK = 32
_STAMP = ("size", "mtime_ns", "ctime_ns", "inode")
SCHEMA = pa.schema(
    [("path", pa.string()), *((name, pa.uint64()) for name in _STAMP), ("sha256", pa.string())]
    + [("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string())]
    + [("low", pa.float64()), ("high", pa.float64()), ("marks", pa.binary())]
)


class ProbeCache:
    """Good images of earlier runs. A damaged cache is started anew, and what is wrong with a file never remembered."""

    def __init__(self, file: Path, rehash: bool = False):
        self.file, self._table, self._saved = file, SCHEMA.empty_table(), True
        with suppress(OSError, pa.ArrowException):
            table = pq.read_table(file, page_checksum_verification=True, partitioning=None)
            if table.schema.equals(SCHEMA) and not rehash:
                self._table = table

    def get(self, paths: list[str], stamps: list[Stamp | None]) -> list[Probe | None]:
        """What is known of files that are still as they were, None for the others."""
        at = pc.index_in(pa.array(paths, pa.string()), value_set=self._table["path"])
        rows = zip(*(column.to_pylist() for column in self._table.take(at).columns[1:]), strict=True)
        return [
            Probe._make((*row[4:8], None, *row[8:])) if row[:4] == stamp else None
            for row, stamp in zip(rows, stamps, strict=True)
        ]

    def put(self, found: Iterable[tuple[str, Stamp | None, Probe]]) -> None:
        """Remember good images: path, stamp from before it was read, what is in it."""
        rows = [
            {"path": path, **dict(zip(_STAMP, stamp, strict=True)), **probe._asdict()}
            for path, stamp, probe in found
            if stamp and not probe.error
        ]
        if rows:
            fresh = pa.Table.from_pylist(rows, schema=SCHEMA)
            kept = self._table.filter(pc.invert(pc.is_in(self._table["path"], value_set=fresh["path"])))
            self._table, self._saved = pa.concat_tables([kept, fresh]).combine_chunks(), False

    def save(self) -> None:
        """Write the cache file, if there is anything new."""
        if not self._saved:
            sink = pa.BufferOutputStream()
            pq.write_table(self._table, sink, compression="zstd", write_page_checksum=True)
            write_file(self.file, sink.getvalue())
            self._saved = True


def stamp_of(path: str) -> Stamp | None:
    """What changes when the file, or the archive that it lies in, is replaced; None where nobody can tell."""
    place = of.place if (of := member(path)) else path
    return folders.stamps[place] if place in folders.stamps else stamp(place)


def probe_all(
    paths: Iterable[str], cache: ProbeCache, workers: ImageWorkers, max_pixels: int, marks: bool = False
) -> Generator[Probe, None, None]:
    """Probe files in order, at most WINDOW ahead of the consumer; with their `marks` where these are asked for."""
    paths = iter(paths)

    def look(chunk: list[str]) -> list[Probe]:
        try:
            return workers.call(probe_chunk, chunk, max_pixels, marks)
        except FileGivenUp as error:  # by one of them: each alone then
            if len(chunk) == 1:
                return [Probe(None, 0, 0, "", f"{chunk[0]}: {error}")]
            return [found for path in chunk for found in look([path])]

    while window := list(islice(paths, WINDOW)):
        parts = [window[start : start + CHUNK] for start in range(0, len(window), CHUNK)]
        stamps = [stamp for part in workers.threads.map(lambda part: [*map(stamp_of, part)], parts) for stamp in part]
        found = cache.get(window, stamps)
        # An image that is too large under today's max_pixels is looked at again, which refuses it.
        todo = [
            i
            for i, known in enumerate(found)
            if known is None or known.width * known.height > max_pixels or marks and known.marks is None
        ]
        chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
        for chunk, fresh in zip(
            chunks, workers.threads.map(look, ([window[i] for i in c] for c in chunks)), strict=True
        ):
            for i, probe in zip(chunk, fresh, strict=True):
                found[i] = probe
        cache.put((window[i], stamps[i], found[i]) for i in todo)
        yield from found
