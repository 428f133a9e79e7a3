"""The index's writer: rows stream in, and the index changes as a whole."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.indexing.table import NO_HASH, ONE_FILE, SCHEMA
from student.files import publish
from student.places import is_remote, join, listed, remove, write_whole

ROWS = 65536
"""Rows in memory at once, as objects of Python."""


def write_index(
    rows: Iterable[dict], place: str | Path, accept: Callable[[], bool], expected: int = 0, schema: pa.Schema = SCHEMA
) -> bool:
    """Stream rows to the index at `place`; it takes the place of an earlier one only if `accept()` says so after the
    last row. Of more than `ONE_FILE` rows `expected` it becomes a folder.

    A reader sees the old index or the new one; only in an object store a folder is replaced file by file.
    """
    target = Path(place) if not is_remote(place) else Path(tempfile.gettempdir(), f"teachonce-{os.getpid()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    _remove(temporary)
    rows = iter(rows)
    try:
        if expected <= ONE_FILE:
            with _writer(temporary, schema) as writer:
                while batch := list(islice(rows, ROWS)):
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        else:
            temporary.mkdir()
            _write_folder(rows, temporary, 1 if expected <= 8 * ONE_FILE else 2, schema)
        if accepted := accept():
            _upload(temporary, str(place)) if is_remote(place) else _replace(temporary, target)
        return accepted
    finally:
        _remove(temporary)


def _writer(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True)


def _write_folder(rows: Iterator[dict], folder: Path, digits: int, schema: pa.Schema) -> None:
    writers: dict[str, pq.ParquetWriter] = {}
    try:
        held: list[pa.Table] = []
        while True:
            batch = list(islice(rows, ROWS))
            held += [pa.Table.from_pylist(batch, schema=schema)] if batch else []
            if held and (len(held) == 4 * digits or not batch):  # so that no file has tiny row groups
                table = pa.concat_tables(held)
                file = pc.fill_null(pc.utf8_slice_codeunits(table["gt_sha256"], 0, digits), NO_HASH)
                for name in pc.unique(file).to_pylist():
                    if name not in writers:
                        writers[name] = _writer(folder / f"{name}.parquet", schema)
                    writers[name].write_table(table.filter(pc.equal(file, name)))
                held = []
            if not batch:
                return
    finally:
        for writer in writers.values():
            writer.close()


def _replace(temporary: Path, target: Path) -> None:
    if temporary.is_file() and not target.is_dir():
        return publish(temporary, target)
    for file in temporary.iterdir() if temporary.is_dir() else ():
        with open(file, "rb") as written:
            os.fsync(written.fileno())
    earlier = target.with_name(f".{target.name}.earlier")
    _remove(earlier)
    if target.exists():
        target.rename(earlier)
    temporary.rename(target)
    _remove(earlier)


def _upload(temporary: Path, place: str) -> None:
    if temporary.is_file():
        files = {place: temporary}
    else:
        files = {join(place, file.name): file for file in sorted(temporary.iterdir())}
    for target, file in files.items():
        write_whole(target, file.read_bytes())
    for name in listed(place, ".parquet"):  # of an index that had other files, or was one
        if (old := join(place, name)) not in files and name != place.rpartition("/")[2]:
            remove(old)
    if place not in files:
        remove(place)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
