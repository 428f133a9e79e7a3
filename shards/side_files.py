"""The files beside the features, index.npy and aliases.parquet: written as the rows come, never all in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.arrays import find, words_of
from shards.card import Statistics
from shards.rows import alias_tables, regroup
from shards.schema import ALIAS_SCHEMA, canonical_json

_ROWS = 65536


def with_footer(schema: pa.Schema, identity: dict) -> pa.Schema:
    text = {f"teachonce.{k}": v if isinstance(v, str) else canonical_json(v).decode() for k, v in identity.items()}
    return schema.with_metadata(text)


class IndexFile:
    """index.npy under construction: the words of all rows, then row by row of the file, never all in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.rows = path, tempfile.TemporaryFile(dir=path.parent), 0

    def add(self, words: np.ndarray) -> None:
        """uint64 [n, 4]"""
        words.astype("<u8").tofile(self.file)
        self.rows += len(words)

    def close(self) -> np.ndarray:
        """uint64 [4, rows], mapped from the finished file."""
        index = np.lib.format.open_memmap(self.path, "w+", np.dtype("<u8"), (4, self.rows))
        self.file.seek(0)
        for start in range(0, self.rows, _ROWS):
            block = np.fromfile(self.file, "<u8", 4 * min(_ROWS, self.rows - start)).reshape(-1, 4)
            index[:, start : start + len(block)] = block.T
        self.file.close()
        index.flush()
        return index


def write_aliases(
    path: Path, aliases: Iterable, identity: dict, index: np.ndarray, statistics: Statistics
) -> tuple[int, int]:
    """Sorted, each once, only those whose image has a row. Returns (written, left out)."""
    schema, counts = with_footer(ALIAS_SCHEMA, identity), np.zeros(2, int)

    def known() -> Iterator[pa.Table]:
        for table in _in_order(alias_tables(aliases)):
            found = find(index, words_of(table.column("image_sha256")))[1]
            counts[:] += found.sum(), (~found).sum()
            statistics.add_aliases(table.filter(pa.array(found)))
            yield table.append_column("found", pa.array(found))

    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in regroup(known(), _ROWS):
            writer.write_table(table.filter(table["found"]).select(ALIAS_SCHEMA.names).cast(schema))
    return int(counts[0]), int(counts[1])


def _in_order(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Aliases in any order → sorted, each once. What comes range by range of images leaves range by range."""
    order = [(name, "ascending") for name in ("image_sha256", "dataset", "path", "domain")]
    held: list[pa.Table] = []
    last = ""
    for table in tables:
        ends = pc.min_max(table["image_sha256"]).as_py() if len(table) else {"min": "", "max": ""}
        if held and ends["min"] > last:
            yield pa.concat_tables(held).group_by(ALIAS_SCHEMA.names).aggregate([]).sort_by(order)
            held = []
        held.append(table)
        last = max(last, ends["max"])
    if held:
        yield pa.concat_tables(held).group_by(ALIAS_SCHEMA.names).aggregate([]).sort_by(order)
