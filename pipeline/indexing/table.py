"""The index's schema, its writer and its reader: one row a pair, for every later stage."""

import os
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from student.files import publish

_TEXT = "dataset domain task split gt_path lq_path degradation range gt_sha256".split()
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXT]
    + [("width", pa.int32()), ("height", pa.int32()), ("mode", pa.string())]
    + [("status", pa.string()), ("error", pa.string())]
)
"""Columns of the index. `lq_path` is null, and `degradation` a JSON object, where gt is degraded on the fly.
`range` is a JSON list of the two numbers that are black and white in both images, null for 8 bits."""

ROWS = 65536
"""Rows in memory at once."""
INDEX_COLUMNS = ["dataset", "domain", "gt_path", "gt_sha256", "status", "width", "height"]


class IndexUnusable(ValueError):
    """The index cannot be used; the message names the file and the remedy."""


def read_index(path: str | Path) -> pa.Table:
    """The usable rows of the index (`INDEX_COLUMNS`); raises `IndexUnusable`."""
    remedy = "run python -m pipeline.index first"
    try:
        table = pq.read_table(path, columns=INDEX_COLUMNS, partitioning=None, page_checksum_verification=True)
    except FileNotFoundError:
        raise IndexUnusable(f"{path}: no index; {remedy}") from None
    except (pa.ArrowException, OSError) as error:
        raise IndexUnusable(f"{path}: not a readable index ({str(error).splitlines()[0]}); {remedy}") from None
    if missing := [name for name in INDEX_COLUMNS if name not in table.column_names]:
        raise IndexUnusable(f"{path}: not an index: no column {', '.join(missing)}; {remedy}")
    table = table.filter(pa.compute.equal(table["status"], "ok"))
    if not table.num_rows:
        raise IndexUnusable(f"{path}: holds no usable image; see python -m pipeline.index --check")
    return table


def images_of(index: pa.Table) -> dict[str, tuple[str, ...]]:
    """Distinct clean images (sha256 -> every path it lies at), ordered by sha256."""
    grouped = index.group_by("gt_sha256").aggregate([("gt_path", "distinct")])
    pairs = zip(grouped["gt_sha256"].to_pylist(), grouped["gt_path_distinct"].to_pylist(), strict=True)
    return {sha256: tuple(sorted(paths)) for sha256, paths in sorted(pairs)}


def write_index(rows: Iterable[dict], file: Path, accept: Callable[[], bool]) -> bool:
    """Stream rows to `file`; it becomes visible whole, and only if `accept()` says so after the last row."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    rows = iter(rows)
    try:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
            while batch := list(islice(rows, ROWS)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
        if accepted := accept():
            publish(temporary, file)
        return accepted
    finally:
        temporary.unlink(missing_ok=True)


def aliases_of(index: pa.Table, *roots: str) -> pa.Table:
    """Where the images lie: distinct (path, dataset, domain, image_sha256), paths relative to the first fitting root.

    A release goes to strangers: of a file outside all roots only the name is told, never the folders above it, and
    two machines with the same data write the same bytes.
    """
    starts = [os.path.join(os.path.abspath(root), "") for root in roots]

    def told(path: str) -> str:
        path = os.path.abspath(path)
        start = next((start for start in starts if path.startswith(start)), os.path.join(os.path.dirname(path), ""))
        return path[len(start) :].replace(os.sep, "/")

    table = index.select(["gt_path", "dataset", "domain", "gt_sha256"])
    table = table.set_column(0, "gt_path", pa.array([told(path) for path in table["gt_path"].to_pylist()], pa.string()))
    table = table.rename_columns(["path", "dataset", "domain", "image_sha256"])
    return table.group_by(table.column_names).aggregate([])


def labels_of(index: pa.Table) -> dict[str, str]:
    """The domain of each image in words (sha256 -> "remote sensing"); of an image in several, all of them."""
    domains: dict[str, set[str]] = {}
    for sha256, domain in zip(index["gt_sha256"].to_pylist(), index["domain"].to_pylist(), strict=True):
        domains.setdefault(sha256, set()).add(domain.replace("_", " "))
    return {sha256: ", ".join(sorted(names)) for sha256, names in domains.items()}


def sizes_of(index: pa.Table) -> dict[str, tuple[int, int]]:
    """Image size in pixels (sha256 -> width, height)."""
    columns = (index[name].to_pylist() for name in ("gt_sha256", "width", "height"))
    return {sha256: (width, height) for sha256, width, height in zip(*columns, strict=True)}
