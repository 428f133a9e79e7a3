"""Write a release: sorted rows in, bounded memory, and the folder changes as a whole."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shards.arrays import words_of
from shards.manifest import dump, parse
from shards.replace import staged
from shards.rows import ascending, feature_tables, regroup
from shards.schema import (
    ALIASES,
    CAPTION,
    CARD,
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    PART,
    SHA256,
    ReleaseError,
    feature_schema,
    group_rows,
    sha256_json,
)
from shards.side_files import IndexFile, Statistics, card, with_footer, write_aliases

_SLICE = 256


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
    created_by: str = "teachonce",
    progress: Callable[[int], object] | None = None,
) -> dict:
    """Write a sealed release to `out_dir` and return its manifest.

    rows: in ascending order of `image_sha256`, read once: mappings `{image_sha256, width, height, captions:
        [{perspective, text, n_tokens, finish_reason}], embedding: float [dim]}` (plus `embeddings: {perspective:
        float [dim]}` where `apart` names perspectives), or pyarrow tables and record batches with those columns
        (`embedding_<perspective>` for the ones apart). Vectors are normalised to unit length and stored as float16.
        Equal neighbours are written once.
    aliases: (path, dataset, domain, image_sha256) tuples, mappings or tables, in any order (they are held in memory,
        but for tables that each begin behind the images of those before);
        those of images that have no row are left out and counted in the manifest as `aliases_without_row`.
    teacher, embedder: JSON objects that identify the models. `embedder["fingerprint"]`, where given, is the identity
        of the vectors; without it the sha256 over `teacher_fingerprint` and the whole `embedder` serves.
    fingerprints: perspective → fingerprint of its captions; teacher_fingerprint: the one over all of them.
    extra_stats: JSON object, kept in `manifest["stats"]["extra"]` and shown in the dataset card.
    part_bytes: a part is closed once it has grown to this size. rows_per_group: rows of a row group, at most 16384; by
        default what makes about 8 MiB of vectors.
    progress: called with the number of rows after each block that has been written.

    Equal content gives equal bytes in every file (for one version of pyarrow, whose name is in every parquet footer).
    The folder is replaced as a whole at the end: a crash leaves the old release or the new one. `out_dir` may be an
    address such as `s3://bucket/folder`: written on this machine first, then published, its manifest last (a crash
    leaves the old one, the new one or none). Raises ReleaseError (bad or unsorted input, or `out_dir` holds something
    else) and ReleaseConflict (one image, two contents).
    """
    apart = sorted(apart)
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
        tables = ascending(feature_tables(rows, dim, list(fingerprints), apart))
        statistics = Statistics()
        parts: list[dict] = []
        part: Part | None = None
        words = IndexFile(folder / INDEX)
        written = 0
        # Row groups of exactly `rows_per_group` rows (the last may be shorter), so that parts depend on content alone.
        for group in regroup(tables, rows_per_group):
            part = part or Part(folder / PART.format(len(parts)), with_footer(feature_schema(dim, apart), identity))
            words.add(words_of(group.column("image_sha256")))
            statistics.add_rows(group)
            written += len(group)
            if part.add(group) >= part_bytes:
                parts.append(part.close())
                part = None
            if progress:
                progress(written)
        if part:
            parts.append(part.close())
        if not parts:
            raise ReleaseError(f"{out_dir}: no rows to write; a release needs at least one embedded image")
        index = words.close()
        n_aliases, without_row = write_aliases(folder / ALIASES, aliases, identity, index, statistics)
        manifest = {
            **identity,
            "created_by": created_by,
            "teacher": dict(teacher),
            "embedder": dict(embedder),
            "apart": apart,
            "group_rows": rows_per_group,
            "rows": written,
            "aliases": n_aliases,
            "aliases_without_row": without_row,
            "stats": {**statistics.summary(), "extra": dict(extra_stats or {})},
            "parts": parts,
        }
        (folder / CARD).write_text(card(manifest), encoding="utf-8")
        manifest["files"] = [_described(folder / name) for name in (ALIASES, INDEX, CARD)]
        sealed = dump(manifest)
        (folder / MANIFEST).write_bytes(sealed)
    return parse(sealed, f"{out_dir}/{MANIFEST}")


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


def _described(path: Path) -> dict:
    """What the manifest says of every file."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256}


class Part:
    """One features-*.parquet under construction."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.sink = path, pa.OSFile(str(path), "wb")
        vectors = [name for name in schema.names if name.startswith("embedding")]
        captions = [f"captions.list.element.{f.name}" for f in schema.field("captions").type.value_type]
        text = ["image_sha256", "width", "height", *captions]
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
        # In slices: the encoder makes four times the memory of what it is given at once. A column stays one page.
        slices = pa.concat_tables(group.slice(start, _SLICE) for start in range(0, len(group), _SLICE))
        self.writer.write_table(slices.cast(self.writer.schema), row_group_size=len(group))
        images = group.column("image_sha256")
        self.first, self.last = self.first or images[0].as_py(), images[-1].as_py()
        self.rows += len(group)
        return self.sink.tell()

    def close(self) -> dict:
        self.writer.close()
        self.sink.close()
        vectors = vector_offsets(self.path)
        described = {"rows": self.rows, "first": self.first, "last": self.last, "vectors": vectors}
        return {**_described(self.path), **described}


def vector_offsets(path: Path) -> dict[str, list[int]]:
    """Vector column → first byte of the vectors in every row group of a part that was just written.

    A column of a row group is one page, plain and uncompressed, whose values come last: they end where the column
    chunk ends.
    """
    footer = pq.read_metadata(path)
    offsets: dict[str, list[int]] = {}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for c in range(3 + CAPTION.num_fields, group.num_columns):  # after image_sha256, width, height and captions
            column = group.column(c)
            end = column.data_page_offset + column.total_compressed_size
            offsets.setdefault(column.path_in_schema.partition(".")[0], []).append(end - 2 * column.num_values)
    return offsets
