"""The index's schema and its reader: one row a pair, for every later stage.

Up to `ONE_FILE` rows it is one parquet file. A larger one is a folder of that name with a file for every first digit
(or two) of `gt_sha256`, so that each later stage loads one range of images at a time.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from student.data.pairs import index_files, read_index_file
from student.places import is_remote, join
from student.places.tars import member

_TEXT = "dataset domain task split gt_path lq_path degradation range gt_sha256".split()
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXT]
    + [("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string())]
    + [("status", pa.string()), ("error", pa.string())]
)
"""Columns of the index. `lq_path` is null, and `degradation` a JSON object, where gt is degraded on the fly.
`range` is a JSON list of the two numbers that are black and white in both images, null for 8 bits."""
UPSAMPLE = pa.field("upsample", pa.int32())
"""One more column where a data set has `upsample`: how many times its lq is enlarged when it is read, or null."""

ONE_FILE = 200_000
"""Rows of an index that is one file."""
NO_HASH = "none"
"""Name of the file of rows without gt_sha256, in a folder."""
BLOCK = 10_000
"""Images that a stage looks at together."""
INDEX_COLUMNS = ["dataset", "domain", "gt_path", "gt_sha256", "status", "width", "height"]


class IndexUnusable(ValueError):
    """The index cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Block:
    """The usable rows of the index with `low <= gt_sha256 < high`, ordered by hash."""

    low: str
    high: str
    rows: pa.Table
    "`INDEX_COLUMNS`"
    starts: np.ndarray
    "[images + 1]: the rows of image i are starts[i] to starts[i + 1]"

    def __len__(self) -> int:
        return len(self.starts) - 1

    def first(self, column: str) -> pa.Array:
        """The value in each image's first row."""
        return self.rows[column].take(pa.array(self.starts[:-1])).combine_chunks()

    @cached_property
    def images(self) -> pa.Array:
        """sha256 of each distinct image, ascending."""
        return self.first("gt_sha256")

    def paths(self, image: int) -> tuple[str, ...]:
        """Every path at which an image lies."""
        start, end = self.starts[image : image + 2]
        return tuple(sorted(set(self.rows["gt_path"].slice(start, end - start).to_pylist())))

    def labels(self) -> list[str]:
        """The domain of each image in words ("remote sensing"); of an image in several, all of them."""
        domains = [domain.replace("_", " ") for domain in self.rows["domain"].to_pylist()]
        return [
            ", ".join(sorted(set(domains[start:end]))) for start, end in zip(self.starts, self.starts[1:], strict=False)
        ]


class Index:
    """The usable rows of the index by ranges of hashes; raises `IndexUnusable`. One file of it is in memory."""

    def __init__(self, path: str | Path):
        self.path = path
        self._held: tuple[str, pa.Table, np.ndarray] | None = None
        files = self._trying(lambda: index_files(path))
        if files == [str(path)]:
            self._files = {files[0]: ("", "g")}
        else:  # by the name of each; rows without a hash are none of the usable ones
            self._files = {f: _range_of(Path(f).stem) for f in files if Path(f).stem != NO_HASH}

    def ranges(self, images: int = BLOCK) -> Iterator[tuple[str, str, int]]:
        """Ranges of all images in order, `(low, high, number of images)`, each of at most `images` of them."""
        any_image = False
        for file, (low, high) in self._files.items():
            rows, starts = self._load(file)
            number = len(starts) - 1
            blocks = -(-number // images)
            cuts = [number * i // blocks for i in range(blocks + 1)]
            edges = [low, *(rows["gt_sha256"][int(starts[cut])].as_py() for cut in cuts[1:-1]), high]
            for i in range(blocks):
                yield edges[i], edges[i + 1], cuts[i + 1] - cuts[i]
            any_image |= number > 0
        if not any_image:
            raise IndexUnusable(f"{self.path}: holds no usable image; see python -m pipeline.index --check")

    def block(self, low: str, high: str) -> Block:
        """The rows of one of `ranges` (of any size)."""
        file = next((file for file, (first, end) in self._files.items() if first <= low < end), None)
        if file is None:
            raise IndexUnusable(f"{self.path}: changed while it was read; run it again")
        rows, starts = self._load(file)
        images = rows["gt_sha256"]
        begin, end = (bisect_left(starts[:-1], edge, key=lambda row: images[int(row)].as_py()) for edge in (low, high))
        mine = starts[begin : end + 1]
        return Block(low, high, rows.slice(mine[0], mine[-1] - mine[0]), mine - mine[0])

    def blocks(self, images: int = BLOCK) -> Iterator[Block]:
        """All of it, range by range."""
        return (self.block(low, high) for low, high, _ in self.ranges(images))

    def _load(self, file: str) -> tuple[pa.Table, np.ndarray]:
        if self._held is None or self._held[0] != file:
            self._held = None  # before the next one comes
            table = self._trying(lambda: read_index_file(file, INDEX_COLUMNS))
            table = table.filter(pc.equal(table["status"], "ok"))
            table = table.take(pc.sort_indices(table["gt_sha256"])).combine_chunks()
            images = table["gt_sha256"]
            new = pc.not_equal(images.slice(1), images.slice(0, max(len(images) - 1, 0))).to_numpy()
            starts = np.concatenate([np.zeros(min(1, len(images)), int), np.flatnonzero(new) + 1, [len(images)]])
            self._held = file, table, starts
        return self._held[1:]

    def _trying(self, reading: Callable):
        remedy = "run python -m pipeline.index first"
        try:
            return reading()
        except FileNotFoundError:
            raise IndexUnusable(f"{self.path}: no index; {remedy}") from None
        except (pa.ArrowException, ValueError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            told = reason if reason.startswith("not an index") else f"not a readable index ({reason})"
            raise IndexUnusable(f"{self.path}: {told}; {remedy}") from None


def _range_of(digits: str) -> tuple[str, str]:
    after = int(digits, 16) + 1
    return digits, "g" if after == 16 ** len(digits) else f"{after:0{len(digits)}x}"


def aliases_of(index: pa.Table, *roots: str) -> pa.Table:
    """Where the images lie: distinct (path, dataset, domain, image_sha256), paths relative to the first fitting root.

    A release goes to strangers: of a file outside all roots only the name is told, never the folders above it, of a
    member of a tar its name therein, and two machines with the same data write the same bytes.
    """
    starts = [join(_absolute(root), "") for root in roots]

    @lru_cache(1000)
    def told_of(folder: str) -> str:
        folder = join(_absolute(folder), "")
        start = next((start for start in starts if folder.startswith(start)), folder)
        return folder[len(start) :].replace(os.sep, "/")

    def told(path: str) -> str:
        if inside := member(path):
            return inside.name
        folder, _, name = path.rpartition(os.sep)
        if not folder or name in ("", ".", ".."):
            folder, name = os.path.split(_absolute(path))
        return told_of(folder) + name

    table = index.select(["gt_path", "dataset", "domain", "gt_sha256"])
    table = table.set_column(0, "gt_path", pa.array([told(path) for path in table["gt_path"].to_pylist()], pa.string()))
    table = table.rename_columns(["path", "dataset", "domain", "image_sha256"])
    return table.group_by(table.column_names).aggregate([])


def _absolute(path: str) -> str:
    return path.rstrip("/") if is_remote(path) else os.path.abspath(path)
