"""Check everything that a release promises, and say all that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import manifest as manifests
from shards.index import find, words_of
from shards.part import vector_offsets
from shards.reader import check_footer
from shards.schema import (
    ALIAS_SCHEMA,
    ALIASES,
    INDEX,
    MANIFEST,
    NORM_TOLERANCE,
    ReleaseError,
    feature_schema,
    vector_columns,
)


def verify(path: str | Path, progress: Callable[[int], object] | None = None) -> list[str]:
    """Problems of a release, one line each, beginning with the file's name; an empty list if it is sound.

    The manifest's seal and every file's size and sha256; then, in files whose bytes are right, what a faulty writer
    could get wrong: page checksums, schema, fingerprints, order and uniqueness of the images, finite vectors of unit
    length at the bytes that the manifest names, the index, and aliases that refer to rows. `progress` is called with
    the number of rows after each batch. Raises ReleaseError only if there is no release at `path` at all.
    """
    files = manifests.resolve(path)
    if MANIFEST not in files:
        raise ReleaseError(f"{path}: holds no {MANIFEST}; not a release")
    try:
        manifest = manifests.load(files[MANIFEST])
    except ReleaseError as error:
        return [str(error)]
    listed = {entry["file"]: entry for entry in [*manifest["parts"], *manifest["files"]]}
    problems = [f"{name}: not part of the release" for name in sorted(set(files) - set(listed) - {MANIFEST})]
    altered = list(_altered(files, listed))
    problems += altered
    if altered:  # content of which the bytes are wrong is not worth parsing, and parsing it may crash
        return problems
    problems += _rows(files, manifest, progress)
    problems += _aliases(files, manifest)
    return problems


def _altered(files: dict[str, Path], listed: dict[str, dict]) -> Iterator[str]:
    for name, entry in listed.items():
        if name not in files or not files[name].is_file():
            yield f"{name}: missing"
        elif (size := files[name].stat().st_size) != entry["bytes"]:
            yield f"{name}: {size} bytes instead of {entry['bytes']}"
        elif manifests.file_sha256(files[name]) != entry["sha256"]:
            yield f"{name}: altered (its sha256 is not the manifest's)"


def _rows(files: dict[str, Path], manifest: dict, progress) -> Iterator[str]:
    index = np.load(files[INDEX], mmap_mode="r")
    if index.shape != (4, manifest["rows"]) or index.dtype != np.uint64:
        yield f"{INDEX}: {index.dtype} {index.shape}, and the manifest says {manifest['rows']} rows"
        return
    row = 0
    last = ""
    for part in manifest["parts"]:
        name, first_row = part["file"], row
        try:
            check_footer(files[name], manifest)
            if vector_offsets(files[name]) != part["vectors"]:
                yield f"{name}: the vectors do not begin where the manifest says"
            file = pq.ParquetFile(files[name], page_checksum_verification=True)
            if not file.schema_arrow.equals(feature_schema(manifest["dim"], manifest["apart"])):
                yield f"{name}: schema is not that of format {manifest['format_version']}"
                return
            for g in range(file.num_row_groups):
                table = file.read_row_group(g, use_threads=False)
                images = table["image_sha256"].to_pylist()
                if any(a >= b for a, b in zip([last, *images], images, strict=False)):
                    yield f"{name}: row group {g} is not in strictly ascending order of image_sha256"
                last = images[-1]
                if not np.array_equal(index[:, row : row + len(images)].T, words_of(images)):
                    yield f"{INDEX}: differs from the images of {name}, row group {g}"
                yield from _vectors(files[name], part, table, g, manifest)
                if g < file.num_row_groups - 1 and len(images) != manifest["group_rows"]:
                    yield f"{name}: row group {g} has {len(images)} rows instead of {manifest['group_rows']}"
                row += len(images)
                if progress:
                    progress(row)
        except (ReleaseError, OSError, pa.ArrowException) as error:
            yield f"{name}: {error}"
            return
        if row - first_row != part["rows"] or last != part["last"]:
            found, told = (row - first_row, last[:12]), (part["rows"], part["last"][:12])
            yield f"{name}: {found[0]} rows to {found[1]}, and the manifest says {told[0]} rows to {told[1]}"
    if row != manifest["rows"]:
        yield f"{MANIFEST}: says {manifest['rows']} rows, the parts hold {row}"


def _vectors(path: Path, part: dict, table: pa.Table, group: int, manifest: dict) -> Iterator[str]:
    for column in vector_columns(manifest["apart"]):
        flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(-1, manifest["dim"]).astype(np.float32)
        mapped = np.memmap(path, np.float16, "r", offset=part["vectors"][column][group], shape=flat.shape)
        if not np.array_equal(mapped.view(np.int16), flat.view(np.int16)):
            yield f"{path.name}: {column} of row group {group} differs between the mapped bytes and the parquet reader"
        worst = np.abs(np.linalg.norm(vectors, axis=1) - 1).max()
        if not worst <= NORM_TOLERANCE:  # also when it is NaN
            yield f"{path.name}: {column} of row group {group} is not of unit length (off by {worst:.2g})"


def _aliases(files: dict[str, Path], manifest: dict) -> Iterator[str]:
    try:
        file = pq.ParquetFile(files[ALIASES], page_checksum_verification=True)
        check_footer(files[ALIASES], manifest)
        if not file.schema_arrow.equals(ALIAS_SCHEMA):
            yield f"{ALIASES}: schema is not that of format {manifest['format_version']}"
            return
        if file.metadata.num_rows != manifest["aliases"]:
            yield f"{ALIASES}: {file.metadata.num_rows} rows, the manifest says {manifest['aliases']}"
        index = np.load(files[INDEX], mmap_mode="r")
        for batch in file.iter_batches(65536, columns=["image_sha256"], use_threads=False):
            found = find(index, words_of(batch.column(0)))[1]
            if not found.all():
                yield f"{ALIASES}: {int((~found).sum())} rows name images that the release does not hold"
    except (ReleaseError, OSError, pa.ArrowException) as error:
        yield f"{ALIASES}: {error}"
