"""Vectors already made, one row per image, so that adding one image embeds one image.

    embedding_cache/<fingerprint>/part-<first>-<last>-<sha256[:32]>.parquet

A part's name says which images it may hold (eight digits of the first and the last sha256). The cache lies beside the
release: inside it, DVC would delete it before every run; inside the caption store, it would change the caption stage's
output. It may be deleted at any time: only time is lost. It may be an address (`student.places`).
"""

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from student.places import join, listed, read, remove, write_whole

_PART = re.compile(r"part-(?:([0-9a-f]{8})-([0-9a-f]{8})-)?([0-9a-f]{32})\.parquet")
_SLICE = 252
"""Rows that are encoded together: in a third less time and a fifth of the memory than 4,096 of them, to the same bytes.
Of so many, with all dims of vectors in use, no page ends where a slice does."""
_COLUMNS = ["image_sha256", "captions_sha256", "truncated"]


@dataclass(frozen=True)
class Found:
    """What the cache holds of n images with exactly these captions."""

    found: np.ndarray
    "bool `[n]`"
    truncated: dict[int, list[str]]
    "number of an image -> perspectives whose text was cut; only those that have some"
    vectors: np.ndarray | None
    "float16 `[n, columns, dim]`, zero where not found"


class EmbeddingCache:
    """(image_sha256, sha256 of its captions) -> vectors float16 `[columns, dim]`, perspectives whose text was cut."""

    def __init__(self, root: str, fingerprint: str, columns: int, dim: int):
        self.directory, self.columns, self.dim = join(root, fingerprint), columns, dim
        self.schema = pa.schema(
            [
                ("image_sha256", pa.string()),
                ("captions_sha256", pa.string()),
                ("truncated", pa.list_(pa.string())),
                ("vectors", pa.list_(pa.float16(), columns * dim)),
            ]
        )
        self._parts: dict[str, tuple[str, str]] = {}
        for name in listed(self.directory, ".parquet"):
            if match := _PART.fullmatch(name):
                if match[1]:
                    self._parts[name] = match[1], match[2]
                elif table := self._read(name, ["image_sha256"]):  # of version 0.1: only the content tells
                    self._parts[name] = table["image_sha256"][0].as_py()[:8], table["image_sha256"][-1].as_py()[:8]

    def find(self, images: pa.Array, captions_sha256: list[str], vectors: bool = True) -> Found:
        """What is there of `images` (ascending), with vectors or without."""
        out = np.zeros((len(images), self.columns, self.dim), np.float16) if vectors else None
        found = np.zeros(len(images), bool)
        truncated: dict[int, list[str]] = {}
        if not len(images):
            return Found(found, truncated, out)
        wanted = pc.binary_join_element_wise(images, pa.array(captions_sha256), "")
        low, high = images[0].as_py()[:8], images[-1].as_py()[:8]
        for name in [name for name, (first, last) in self._parts.items() if first <= high and last >= low]:
            table = self._read(name, [*_COLUMNS, *(["vectors"] if vectors else [])])
            if table is None:
                continue
            keys = pc.binary_join_element_wise(table["image_sha256"], table["captions_sha256"], "")
            number = pc.fill_null(pc.index_in(keys, wanted), -1).to_numpy()
            rows = np.flatnonzero(number >= 0)
            found[number[rows]] = True
            if vectors:
                flat = table["vectors"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                out[number[rows]] = flat.reshape(-1, self.columns, self.dim)[rows]
            cut = pc.list_value_length(table["truncated"]).to_numpy()
            for row in rows[cut[rows] > 0].tolist():
                truncated[int(number[row])] = table["truncated"][row].as_py()
        return Found(found, truncated, out)

    def append(self, images: list[str], captions_sha256: list[str], truncated: list[list[str]], vectors) -> None:
        """Keep `vectors` (float16 `[n, columns, dim]`) of `images` (ascending) as one part."""
        flat = pa.array(np.ascontiguousarray(vectors, np.float16).reshape(-1))
        columns = [
            pa.array(images),
            pa.array(captions_sha256),
            pa.array(truncated, pa.list_(pa.string())),
            pa.FixedSizeListArray.from_arrays(flat, self.columns * self.dim),
        ]
        buffer = pa.BufferOutputStream()
        table = pa.Table.from_arrays(columns, schema=self.schema)
        table = pa.concat_tables(table.slice(start, _SLICE) for start in range(0, len(table), _SLICE))
        pq.write_table(table, buffer, compression="none", use_dictionary=False, write_statistics=False)
        content = buffer.getvalue().to_pybytes()
        first, last = images[0][:8], images[-1][:8]
        name = f"part-{first}-{last}-{hashlib.sha256(content).hexdigest()[:32]}.parquet"
        write_whole(join(self.directory, name), content)
        self._parts[name] = first, last

    def _read(self, name: str, columns: list[str]) -> pa.Table | None:
        place = join(self.directory, name)
        content = read(place)
        if hashlib.sha256(content).hexdigest()[:32] != _PART.fullmatch(name)[3]:
            remove(place)  # damaged, and cheap to make again
            self._parts.pop(name, None)
            return None
        return pq.ParquetFile(pa.BufferReader(content)).read(columns, use_threads=False)
