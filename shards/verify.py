"""Check everything that a release promises: what opening checks, and all that `verify` says is wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.arrays import find, parse_index, words_of
from shards.folder import Folder, open_folder
from shards.remote import RemoteFile
from shards.schema import (
    ALIAS_SCHEMA,
    ALIASES,
    INDEX,
    NORM_TOLERANCE,
    DamagedRelease,
    NoRelease,
    ReleaseError,
    feature_schema,
    vector_columns,
)

_BATCH = 1024
_GROUP_BYTES = 1 << 30  # more text than any row group has: one that swells further is an attack


def verify(release: str | Path | Folder, progress: Callable[[int], object] | None = None) -> list[str]:
    """Problems of a release, one line each, beginning with the file's name; an empty list if it is sound.

    The manifest's seal and every file's size and sha256; then, in files whose bytes are right, what a faulty writer
    could get wrong: page checksums, schema, fingerprints, order and uniqueness of the images, finite vectors of unit
    length at the bytes that the manifest names, the index, and aliases that refer to rows. `progress` is called with
    the number of rows after each batch. Raises ReleaseError only if there is nothing at the path at all; a `Folder`
    (`Release.folder`) is judged as it was opened.
    """
    try:
        folder = release if isinstance(release, Folder) else open_folder(release)
    except ReleaseError as error:
        if isinstance(error, NoRelease) and not os.path.exists(release):
            raise
        return [str(error)]
    problems = [f"{name}: not part of the release" for name in folder.strangers]
    altered = [problem for name in folder.listed if (problem := folder.altered(name))]
    if altered:  # content of which the bytes are wrong is not worth parsing
        return problems + altered
    try:
        index = parse_index(folder.files[INDEX], folder.manifest["rows"])
    except DamagedRelease as error:
        return [*problems, str(error)]
    row, last = 0, ""
    for part in folder.manifest["parts"]:
        try:
            with damage(part["file"]):
                check_part(folder, part)
                for problem in _rows(folder, part, index, row, last, progress):
                    problems.append(f"{part['file']}: {problem}")
        except DamagedRelease as error:
            problems.append(str(error))
        row, last = row + part["rows"], part["last"]
    try:
        with damage(ALIASES):
            problems += _aliases(folder, index)
    except DamagedRelease as error:
        problems.append(str(error))
    return problems


def _rows(folder: Folder, part: dict, index: np.ndarray, row: int, last: str, progress) -> Iterator[str]:
    """row: number of the part's first row; last: the image before it."""
    file = parquet_of(folder, part["file"])
    for g in range(file.num_row_groups):
        batches = file.iter_batches(_BATCH, row_groups=[g], use_threads=False)  # at once, decoding takes 50 MB
        table = pa.Table.from_batches(batches, file.schema_arrow)
        table.validate(full=True)
        images = table["image_sha256"].to_pylist()
        if any(a >= b for a, b in zip([last, *images], images, strict=False)):
            yield f"row group {g} is not in strictly ascending order of image_sha256"
        if g == 0 and images[0] != part["first"]:
            yield f"begins with {images[0][:12]}, and the manifest says {part['first'][:12]}"
        if not np.array_equal(index[:, row : row + len(images)].T, words_of(images)):
            yield f"row group {g} differs from {INDEX}"
        yield from _vectors(folder, part, table, g)
        row, last = row + len(images), images[-1]
        if progress:
            progress(row)
    if last != part["last"]:
        yield f"ends with {last[:12]}, and the manifest says {part['last'][:12]}"


def _vectors(folder: Folder, part: dict, table: pa.Table, group: int) -> Iterator[str]:
    for column in vector_columns(folder.manifest["apart"]):
        flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        start = part["vectors"][column][group]
        if not np.array_equal(flat.view(np.uint8), folder.files[part["file"]][start : start + 2 * len(flat)]):
            yield f"{column} of row group {group} differs between the mapped bytes and the parquet reader"
        vectors = flat.reshape(len(table), -1)
        worst = np.abs(np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)) - 1).max()
        if not worst <= NORM_TOLERANCE:  # also when it is NaN
            yield f"{column} of row group {group} is not of unit length (off by {worst:.2g})"


def _aliases(folder: Folder, index: np.ndarray) -> Iterator[str]:
    check_aliases(folder)
    for batch in parquet_of(folder, ALIASES).iter_batches(65536, use_threads=False):
        batch.validate(full=True)
        found = find(index, words_of(batch.column("image_sha256")))[1]
        if not found.all():
            yield f"{ALIASES}: {int((~found).sum())} rows name images that the release does not hold"


@contextmanager
def damage(name: str, folder: Folder | None = None) -> Iterator[None]:
    """Whatever a parser raises over a stranger's bytes becomes DamagedRelease, which names the file; or a ReleaseError
    where `folder` was replaced since it was opened."""
    try:
        yield
    except Exception as error:
        if folder:
            folder.check()
        if isinstance(error, DamagedRelease):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DamagedRelease(f"{name}: cannot be read ({reason}); pull the release again") from error


def check_files(folder: Folder, strict: bool) -> None:
    """Raises DamagedRelease if a listed file is missing, of another size or, where strict, of another sha256."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for problem in pool.map(folder.altered, folder.listed) if strict else map(folder.lacks, folder.listed):
            if problem:
                raise DamagedRelease(f"{folder.path}/{problem}; pull the release again")


def parquet_of(folder: Folder, name: str) -> pq.ParquetFile:
    """A reader of its own over the mapped bytes, so that neither threads nor forked workers share a position."""
    file = folder.files[name]
    if isinstance(file, RemoteFile):
        return file.parquet()
    return pq.ParquetFile(pa.BufferReader(pa.py_buffer(file)), page_checksum_verification=True)


def check_part(folder: Folder, part: dict) -> None:
    """Raises DamagedRelease if a part's footer is not that of this manifest.

    Asks for no column of the footer: pyarrow ends the whole process over some that are damaged.
    """
    name, manifest = part["file"], folder.manifest
    with damage(name):
        footer = check_footer(folder, name, feature_schema(manifest["dim"], manifest["apart"]))
        rows = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
        told = [min(manifest["group_rows"], part["rows"] - i) for i in range(0, part["rows"], manifest["group_rows"])]
        if rows != told:
            raise DamagedRelease(
                f"{name}: {sum(rows)} rows in {len(rows)} groups, and the manifest says {part['rows']}"
            )


def check_aliases(folder: Folder) -> None:
    """Raises DamagedRelease if the footer of aliases.parquet is not that of this manifest."""
    with damage(ALIASES):
        rows, told = check_footer(folder, ALIASES, ALIAS_SCHEMA).num_rows, folder.manifest["aliases"]
        if rows != told or rows > 16 * len(folder.files[ALIASES]):
            raise DamagedRelease(f"{ALIASES}: {rows} rows, the manifest says {told}")


def check_footer(folder: Folder, name: str, schema: pa.Schema) -> pq.FileMetaData:
    """The footer; raises if it is of another schema or release, or says that a page swells beyond all measure."""
    file, manifest = parquet_of(folder, name), folder.manifest
    for key in ("teacher_fingerprint", "embedding_fingerprint"):
        found = (file.metadata.metadata or {}).get(f"teachonce.{key}".encode(), b"").decode(errors="replace")
        if found != manifest[key]:
            raise DamagedRelease(
                f"{name}: {key} {found[:12]!r}, the manifest says {manifest[key][:12]!r}; mixed releases"
            )
    if not file.schema_arrow.equals(schema):
        raise DamagedRelease(f"{name}: schema is not that of format {manifest['format_version']}")
    most = _GROUP_BYTES + 2 * manifest["dim"] * manifest["group_rows"] * (1 + len(manifest["apart"]))
    for g in range(file.metadata.num_row_groups):
        if not 0 <= file.metadata.row_group(g).total_byte_size <= most:
            raise DamagedRelease(f"{name}: row group {g} is larger than any that a writer makes")
    return file.metadata
