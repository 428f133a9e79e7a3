"""Write a release: any order in, one order out, bounded memory, and the folder changes in one step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import manifest as manifests
from shards.card import Statistics, card
from shards.external_sort import ExternalSort
from shards.index import IndexWriter, find, words_of
from shards.part import Part, describe
from shards.rows import alias_tables, feature_tables
from shards.schema import (
    ALIAS_SCHEMA,
    ALIASES,
    CARD,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    PART,
    SHA256,
    ReleaseError,
    canonical_json,
    feature_schema,
    group_rows,
    sha256_json,
)
from shards.staging import staged


def write_release(
    out_dir: str | Path,
    rows: Iterable,
    aliases: Iterable,
    *,
    teacher: Mapping,
    embedder: Mapping,
    fingerprints: Mapping[str, str],
    teacher_fingerprint: str,
    dim: int,
    apart: Sequence[str] = (),
    extra_stats: Mapping | None = None,
    part_bytes: int = 128 << 20,
    rows_per_group: int | None = None,
    memory_bytes: int = 256 << 20,
    created_by: str = "teachonce",
    progress: Callable[[int], object] | None = None,
) -> dict:
    """Write a sealed release to `out_dir` and return its manifest.

    rows: in any order, read once: mappings `{image_sha256, width, height, captions: [{perspective, text, n_tokens,
        finish_reason}], embedding: float [dim]}` (plus `embeddings: {perspective: float [dim]}` where `apart` names
        perspectives), or pyarrow tables and record batches with those columns (`embedding_<perspective>` for the
        ones apart). Vectors are normalised to unit length and stored as float16. Equal rows are written once.
    aliases: (path, dataset, domain, image_sha256) tuples, mappings or tables; those of images that have no row are
        left out and counted in the manifest as `aliases_without_row`.
    teacher, embedder: JSON objects that identify the models. `embedder["fingerprint"]`, where given, is the identity
        of the vectors; without it the sha256 over `teacher_fingerprint` and the whole `embedder` serves.
    fingerprints: perspective → fingerprint of its captions; teacher_fingerprint: the one over all of them.
    extra_stats: JSON object, kept in `manifest["stats"]["extra"]` and shown in the dataset card.
    part_bytes: a part is closed once it has grown to this size. rows_per_group: rows of a row group, at most 16384; by
        default what makes about 8 MiB of vectors. memory_bytes: rows held before a run goes to disk.
    progress: called with the number of rows after each block that has been written.

    Equal content gives equal bytes in every file, whatever the order of the input and `memory_bytes` (for one
    version of pyarrow, whose name is in every parquet footer). The folder is replaced in one step at the end: a crash
    leaves the old release or the new one. Raises ReleaseError (bad input, or `out_dir` holds something else) and
    ReleaseConflict (one image, two contents).
    """
    out_dir, apart = Path(out_dir), sorted(apart)
    rows_per_group = rows_per_group or group_rows(dim, apart)
    if not 1 <= rows_per_group <= 16384:
        raise ReleaseError(f"rows_per_group={rows_per_group}: 1 to 16384, so that a column of a group is one page")
    _check_identity(fingerprints, teacher_fingerprint, dim, apart)
    identity = {
        "format_version": FORMAT_VERSION,
        "teacher_fingerprint": teacher_fingerprint,
        "embedding_fingerprint": embedding_fingerprint(teacher_fingerprint, embedder),
        "fingerprints": dict(fingerprints),
        "dim": dim,
    }
    with staged(out_dir) as folder:
        spill = folder / "spill"
        spill.mkdir()
        sorter = ExternalSort(spill, "image_sha256", memory_bytes)
        for table in feature_tables(rows, dim, list(fingerprints), apart):
            sorter.add(table)
        statistics = Statistics()
        index = IndexWriter(spill / "index.bin")
        parts = _write_parts(folder, sorter, identity, apart, rows_per_group, part_bytes, statistics, index, progress)
        if not parts:
            raise ReleaseError(f"{out_dir}: no rows to write; a release needs at least one embedded image")
        rows_index = index.finish(folder / INDEX)
        n_aliases, without_row = _write_aliases(folder, spill, aliases, identity, rows_index, memory_bytes, statistics)
        del rows_index
        manifest = {
            **identity,
            "created_by": created_by,
            "teacher": dict(teacher),
            "embedder": dict(embedder),
            "apart": apart,
            "group_rows": rows_per_group,
            "rows": sum(part["rows"] for part in parts),
            "aliases": n_aliases,
            "aliases_without_row": without_row,
            "stats": {**statistics.summary(), "extra": dict(extra_stats or {})},
            "parts": parts,
        }
        (folder / CARD).write_text(card(manifest), encoding="utf-8")
        manifest["files"] = [describe(folder / name) for name in (ALIASES, INDEX, CARD)]
        shutil.rmtree(spill)
        (folder / MANIFEST).write_bytes(manifests.dump(manifest))
        sealed = manifests.load(folder / MANIFEST)
    return sealed


def embedding_fingerprint(teacher_fingerprint: str, embedder: Mapping) -> str:
    return embedder.get("fingerprint") or sha256_json({"teacher": teacher_fingerprint, "embedder": dict(embedder)})


def _check_identity(fingerprints: Mapping[str, str], teacher_fingerprint: str, dim: int, apart: Sequence[str]) -> None:
    if not fingerprints:
        raise ReleaseError("fingerprints: empty; name every perspective and the fingerprint of its captions")
    for key, value in {**fingerprints, "teacher_fingerprint": teacher_fingerprint}.items():
        if not SHA256.fullmatch(value):
            raise ReleaseError(f"fingerprint of {key}: {value!r} is not a sha256 in lower-case hexadecimal")
    unknown = [perspective for perspective in apart if perspective not in fingerprints]
    if unknown:
        raise ReleaseError(f"apart: perspective {unknown[0]!r} has no fingerprint; known: {sorted(fingerprints)}")
    if dim < 1:
        raise ReleaseError(f"dim={dim}: an embedding has at least one number")


def _footer(identity: dict) -> dict[str, str]:
    return {f"teachonce.{k}": v if isinstance(v, str) else canonical_json(v).decode() for k, v in identity.items()}


def _write_parts(
    folder, sorter, identity, apart, rows_per_group, part_bytes, statistics, index, progress
) -> list[dict]:
    """Row groups of exactly `rows_per_group` rows (the last may be shorter), so that parts depend on content alone."""
    schema = feature_schema(identity["dim"], apart).with_metadata(_footer(identity))
    parts: list[dict] = []
    part: Part | None = None
    written = 0
    for group in _regroup(sorter.blocks(), rows_per_group):
        part = part or Part(folder / PART.format(len(parts)), schema)
        index.add(words_of(group.column("image_sha256")))
        statistics.add_rows(group)
        written += len(group)
        if part.add(group) >= part_bytes:
            parts.append(part.close())
            part = None
        if progress:
            progress(written)
    if part:
        parts.append(part.close())
    return parts


def _regroup(blocks: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Tables of any length → tables of exactly `rows` rows (and one rest)."""
    held, n = [], 0
    for block in blocks:
        held.append(block)
        n += len(block)
        if n >= rows:
            table = pa.concat_tables(held)
            whole = n // rows * rows
            for start in range(0, whole, rows):
                yield table.slice(start, rows).combine_chunks()
            held, n = [table.slice(whole)], n - whole
    if n:
        yield pa.concat_tables(held).combine_chunks()


def _write_aliases(
    folder, spill, aliases, identity, rows_index: np.ndarray, memory_bytes, statistics
) -> tuple[int, int]:
    """Sorted, each once, only those whose image has a row. Returns (written, left out)."""
    sorter = ExternalSort(spill / "aliases", "key", memory_bytes)
    sorter.folder.mkdir()
    for table in alias_tables(aliases):
        key = pc.binary_join_element_wise(
            *(table.column(n) for n in ("image_sha256", "dataset", "path", "domain")), "\0"
        )
        sorter.add(table.append_column("key", key))
    schema = ALIAS_SCHEMA.with_metadata(_footer(identity))
    written = left_out = 0
    with pq.ParquetWriter(folder / ALIASES, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in _regroup(sorter.blocks(), 65536):
            _, found = find(rows_index, words_of(table.column("image_sha256")))
            left_out += len(table) - int(found.sum())
            table = table.drop_columns("key").filter(pa.array(found)).cast(schema)
            statistics.add_aliases(table)
            writer.write_table(table)
            written += len(table)
    return written, left_out
