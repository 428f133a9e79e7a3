"""One features-*.parquet: how it is laid out, and where its vectors lie."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.manifest import file_sha256
from shards.rows import as_vectors
from shards.schema import ReleaseError


def describe(path: Path) -> dict:
    """What the manifest says of every file."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


class Part:
    """One features-*.parquet under construction."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        self.sink = pa.OSFile(str(path), "wb")
        vectors = [name for name in schema.names if name.startswith("embedding")]
        text = [
            "image_sha256",
            "width",
            "height",
            *(f"captions.list.element.{f.name}" for f in schema.field("captions").type.value_type),
        ]
        self.writer = pq.ParquetWriter(
            self.sink,
            schema,
            # Float16 embeddings hardly compress and stay plain, so that readers map them.
            compression={**dict.fromkeys(text, "zstd"), **{f"{name}.list.element": "none" for name in vectors}},
            use_dictionary=["captions.list.element.perspective", "captions.list.element.finish_reason"],
            write_statistics=["image_sha256", "width", "height"],
            write_page_checksum=True,
            data_page_size=1 << 30,
            data_page_version="1.0",
        )
        self.rows, self.first, self.last = 0, "", ""

    def add(self, group: pa.Table) -> int:
        """Write one row group; returns the file's size so far."""
        columns = [
            as_vectors(column.chunk(0), field.type) if field.name.startswith("embedding") else column.chunk(0)
            for field, column in zip(self.schema, group.columns, strict=True)
        ]
        self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema), row_group_size=len(group))
        self.first = self.first or columns[0][0].as_py()
        self.last = columns[0][-1].as_py()
        self.rows += len(group)
        return self.sink.tell()

    def close(self) -> dict:
        self.writer.close()
        self.sink.close()
        described = {"rows": self.rows, "first": self.first, "last": self.last, "vectors": vector_offsets(self.path)}
        return {**describe(self.path), **described}


def vector_offsets(path: Path) -> dict[str, list[int]]:
    """Vector column → first byte of the vectors in every row group, read from the parquet footer.

    A column of a row group is one page, plain and uncompressed, whose values come last: they end where the column
    chunk ends. Raises ReleaseError where the file is not laid out so.
    """
    footer = pq.read_metadata(path)
    offsets: dict[str, list[int]] = {}
    for g in range(footer.num_row_groups):
        group = footer.row_group(g)
        for c in range(group.num_columns):
            column = group.column(c)
            name, _, rest = column.path_in_schema.partition(".")
            if not (name.startswith("embedding") and rest):
                continue
            if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
                raise ReleaseError(f"{path}: {name} is compressed or dictionary-encoded; format 1 stores it plain")
            end = column.data_page_offset + column.total_compressed_size
            offsets.setdefault(name, []).append(end - 2 * column.num_values)
    return offsets
