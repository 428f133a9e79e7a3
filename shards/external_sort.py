"""Sort more rows than fit in memory: sorted runs on disk, merged block by block."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from shards.schema import ReleaseConflict

_BLOCK_ROWS = 1024


class ExternalSort:
    """Collects tables that have a unique string column `key`; gives them back sorted by it, each key once.

    Rows that share a key must be equal in every column, else ReleaseConflict names the key. Memory stays within
    about three times `memory_bytes`, whatever the number of rows; `folder` takes a second copy of the data.
    """

    def __init__(self, folder: Path, key: str, memory_bytes: int) -> None:
        self.folder, self.key, self.memory_bytes = folder, key, memory_bytes
        self.held: list[pa.Table] = []
        self.runs: list[Path] = []

    def add(self, table: pa.Table) -> None:
        self.held.append(table)
        if sum(held.nbytes for held in self.held) >= self.memory_bytes:
            self._spill()

    def blocks(self) -> Iterator[pa.Table]:
        if not self.runs:
            if self.held:
                yield self._sorted(self.held)
            return
        if self.held:
            self._spill()
        runs = [_Run(path, self.key) for path in self.runs]
        while runs := [run for run in runs if run.refill()]:
            # Everything up to the smallest block end is at hand, because later blocks only hold larger keys.
            ends = [run.last for run in runs if not run.exhausted]
            cut = min(ends) if ends else None
            taken = [run.take(cut) for run in runs]
            yield self._sorted([table for table in taken if len(table)])

    def _spill(self) -> None:
        path = self.folder / f"run-{len(self.runs):05d}.arrow"
        table = self._sorted(self.held)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=_BLOCK_ROWS)
        self.held = []
        self.runs.append(path)

    def _sorted(self, tables: list[pa.Table]) -> pa.Table:
        table = pa.concat_tables(tables).combine_chunks()
        table = table.take(pc.sort_indices(table.column(self.key))).combine_chunks()
        keys = table.column(self.key)
        same = pc.equal(keys.slice(1), keys.slice(0, max(len(keys) - 1, 0)))
        if not pc.any(same).as_py():
            return table
        for at in pc.indices_nonzero(same).to_pylist():
            if not table.slice(at, 1).equals(table.slice(at + 1, 1)):
                raise ReleaseConflict(
                    f"image {keys[at].as_py()} has two different rows (captions, size or embedding); "
                    "two runs of the teacher were mixed: keep one of them"
                )
        return table.filter(pa.chunked_array([pa.array([True]), *pc.invert(same).chunks]))


class _Run:
    """One sorted file, seen through a window of one block; the file is memory-mapped, so a block costs nothing."""

    def __init__(self, path: Path, key: str) -> None:
        self.reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.key, self.at, self.window = key, 0, None

    def refill(self) -> bool:
        while (self.window is None or not len(self.window)) and not self.exhausted:
            self.window = pa.Table.from_batches([self.reader.get_batch(self.at)])
            self.at += 1
        return self.window is not None and len(self.window) > 0

    @property
    def exhausted(self) -> bool:
        return self.at >= self.reader.num_record_batches

    @property
    def last(self) -> str:
        return self.window.column(self.key)[-1].as_py()

    def take(self, cut: str | None) -> pa.Table:
        keys = self.window.column(self.key)
        n = len(keys) if cut is None else bisect_right(range(len(keys)), cut, key=lambda i: keys[i].as_py())
        taken, self.window = self.window.slice(0, n), self.window.slice(n)
        return taken
