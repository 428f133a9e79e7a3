"""Vectors already made, one row per image, so that adding one image embeds one image.

    embedding_cache/<fingerprint>/part-<sha256[:32]>.parquet

It lies beside the release: inside it, DVC would delete it before every run; inside the caption store, it would change
the caption stage's output. It may be deleted at any time: only time is lost.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from student.files import write_file


class EmbeddingCache:
    """image_sha256 -> (sha256 of its captions, vectors float16 `[columns, dim]`, perspectives whose text was cut)."""

    def __init__(self, root: Path, fingerprint: str, columns: int, dim: int):
        self.directory, self.columns, self.dim = Path(root) / fingerprint, columns, dim
        self.schema = pa.schema(
            [
                ("image_sha256", pa.string()),
                ("captions_sha256", pa.string()),
                ("truncated", pa.list_(pa.string())),
                ("vectors", pa.list_(pa.float16(), columns * dim)),
            ]
        )
        self._made: dict[str, tuple[str, list[str]]] = {}  # image_sha256 -> captions_sha256, truncated perspectives
        self._parts: list[tuple[Path, str, str]] = []
        for path in sorted(self.directory.glob("part-*.parquet")):
            self._add(path)

    def _add(self, path: Path) -> None:
        content = path.read_bytes()
        if path.stem != f"part-{hashlib.sha256(content).hexdigest()[:32]}":
            path.unlink()  # damaged, and cheap to make again
            return
        table = pq.read_table(pa.BufferReader(content), columns=["image_sha256", "captions_sha256", "truncated"])
        images, digests, truncated = (column.to_pylist() for column in table.columns)
        self._made.update(zip(images, zip(digests, truncated, strict=True), strict=True))
        self._parts.append((path, images[0], images[-1]))

    def holds(self, image_sha256: str, captions_sha256: str) -> bool:
        """Whether the vector of exactly these captions is there."""
        return self._made.get(image_sha256, ("", []))[0] == captions_sha256

    def truncated(self, images: Iterable[str]) -> Counter:
        """Captions of `images` that the embedder cut, by perspective."""
        return Counter(name for sha256 in images for name in self._made.get(sha256, ("", []))[1])

    def append(self, rows: Mapping[str, tuple[str, list[str], np.ndarray]]) -> None:
        """Keep `rows` (image_sha256 -> captions_sha256, truncated, vectors) as one part."""
        images = sorted(rows)
        vectors = np.stack([rows[sha256][2] for sha256 in images]).astype(np.float16).reshape(-1)
        columns = [
            pa.array(images),
            pa.array([rows[sha256][0] for sha256 in images]),
            pa.array([rows[sha256][1] for sha256 in images], pa.list_(pa.string())),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors), self.columns * self.dim),
        ]
        buffer = io.BytesIO()
        table = pa.Table.from_arrays(columns, schema=self.schema)
        pq.write_table(table, buffer, compression="none", use_dictionary=False)
        content = buffer.getvalue()
        path = self.directory / f"part-{hashlib.sha256(content).hexdigest()[:32]}.parquet"
        write_file(path, content)
        self._add(path)

    def vectors(self, low: str, high: str) -> dict[str, np.ndarray]:
        """image_sha256 -> vectors float16 `[columns, dim]` for `low <= image_sha256 < high`."""
        in_range = (pc.field("image_sha256") >= low) & (pc.field("image_sha256") < high)
        found = {}
        for path, first, last in self._parts:
            if last < low or first >= high:
                continue
            columns = ["image_sha256", "captions_sha256", "vectors"]
            table = pq.read_table(path, columns=columns, filters=in_range, partitioning=None)
            vectors = table["vectors"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = vectors.reshape(-1, self.columns, self.dim)
            for sha256, digest, vector in zip(*(table[name].to_pylist() for name in columns[:2]), vectors, strict=True):
                if self.holds(sha256, digest):  # captions that were retried since have a newer vector
                    found[sha256] = vector
        return found
