"""What is known of image files, in SQLite: a row a good image, so that an unchanged file is read once."""

import json
import sqlite3
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from zlib import crc32

from pipeline.indexing import folders
from pipeline.indexing.probe import Probe, probe_chunk
from student.images.workers import FileGivenUp, ImageWorkers
from student.places import Stamp, stamp
from student.places.tars import member

WINDOW = 8192
"""Files in flight at once: what bounds the memory, and what a killed run repeats."""
CHUNK = 32
VERSION = 1
"""Of the table; that of another version is started anew."""
_CREATE = "CREATE TABLE images (path TEXT PRIMARY KEY, stamp TEXT, found TEXT, marks BLOB, crc INT) WITHOUT ROWID"


class ProbeCache:
    """Good images of earlier runs. A damaged cache is started anew, and what is wrong with a file never remembered.

    Nothing of it is in memory, and each window of files is written when it is known. Raises `OSError` where the file
    cannot be read or written.
    """

    def __init__(self, file: Path, rehash: bool = False):
        self.file, self._there = file, False
        if file.is_file() and not rehash:
            with self._sound():
                self._there = self._connect().execute("PRAGMA user_version").fetchone()[0] == VERSION

    def get(self, paths: list[str], stamps: list[Stamp | None]) -> list[Probe | None]:
        """What is known of at most `WINDOW` files that are still as they were, None for the others."""
        known = {}
        with self._sound():
            wanted = f"SELECT * FROM images WHERE path IN ({','.join('?' * len(paths))})"
            for path, *row, crc in self._connect().execute(wanted, paths) if self._there else ():
                if _crc(path, *row) == crc:
                    known[path] = row
        return [
            _probe(*known[path][1:]) if path in known and known[path][0] == json.dumps(now) else None
            for path, now in zip(paths, stamps, strict=True)
        ]

    def put(self, found: Iterable[tuple[str, Stamp | None, Probe]]) -> None:
        """Remember good images, for good: path, stamp from before it was read, what is in it."""
        rows = []
        for path, before, probe in found:
            if before and not probe.error:
                told = json.dumps([probe.sha256, probe.width, probe.height, probe.mode, probe.low, probe.high])
                row = (path, json.dumps(before), told, probe.marks)
                rows.append((*row, _crc(*row)))
        if rows:
            with self._sound():
                if not self._there:
                    self._start_anew()
                with self._connect() as base:
                    base.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", rows)

    @contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # no place, no room, or another run that does not end
            raise OSError(f"{self.file}: {error}") from None
        except sqlite3.DatabaseError:  # damaged
            self._there = False

    def _connect(self) -> sqlite3.Connection:
        if not hasattr(self, "_base"):
            self._base = sqlite3.connect(self.file, timeout=60)  # another run writes a window in far less
        return self._base

    def _start_anew(self) -> None:
        if hasattr(self, "_base"):
            self._base.close()
            del self._base
        self.file.unlink(missing_ok=True)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as base:
            base.execute(_CREATE)
            base.execute(f"PRAGMA user_version = {VERSION}")
        self._there = True


def _crc(path: str, stamp: str, found: str, marks: bytes | None) -> int:
    """SQLite has no checksums, and a flipped bit in a hash would be another image."""
    return crc32(json.dumps([path, stamp, found]).encode() + (marks or b""))


def _probe(found: str, marks: bytes | None) -> Probe:
    sha256, width, height, mode, low, high = json.loads(found)
    return Probe(sha256, width, height, mode, None, low, high, marks)


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
