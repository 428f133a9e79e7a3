"""Whatever a caller hands in (dicts, record batches, tables) → tables of one exact shape, or a clear refusal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.schema import (
    ALIAS_SCHEMA,
    CAPTION,
    CAPTIONS,
    NORM_TOLERANCE,
    ReleaseConflict,
    ReleaseError,
    feature_schema,
    vector_columns,
)

_CHUNK = 2048
# Drops keys that the format does not know and turns a missing one into a null, which is then refused by name.
_LOOSE_CAPTIONS = pa.list_(pa.struct([field.with_nullable(True) for field in CAPTION]))


def feature_tables(rows: Iterable, dim: int, perspectives: Sequence[str], apart: Sequence[str]) -> Iterator[pa.Table]:
    """Checked tables of `feature_schema`, vectors as unit-length float16."""
    schema = feature_schema(dim, apart)
    for table in _tables(rows, lambda chunk: _table_of_dicts(chunk, dim, apart)):
        sha256s = _sha256s(_column(table, "image_sha256"))
        columns = [
            sha256s,
            _size(_column(table, "width"), "width"),
            _size(_column(table, "height"), "height"),
            _captions(_column(table, "captions"), sorted(perspectives), sha256s),
            *(_vectors(_column(table, name), dim, name, sha256s) for name in vector_columns(apart)),
        ]
        yield pa.Table.from_arrays(columns, schema=schema)


def alias_tables(aliases: Iterable) -> Iterator[pa.Table]:
    """Checked tables of ALIAS_SCHEMA from (path, dataset, domain, image_sha256) tuples, dicts or batches."""
    names = ALIAS_SCHEMA.names

    def build(chunk: list) -> pa.Table:
        chunk = [row if isinstance(row, Mapping) else dict(zip(names, row, strict=True)) for row in chunk]
        return pa.table({name: pa.array([row[name] for row in chunk], pa.string()) for name in names})

    for table in _tables(aliases, build):
        columns = [_column(table, name).cast(pa.string()) for name in names]
        for name, column in zip(names, columns, strict=True):
            if column.null_count:
                raise ReleaseError(
                    f"aliases: {column.null_count} rows have no {name}; every alias names all of {names}"
                )
        _is_text("aliases", *columns)
        _sha256s(columns[3])
        yield pa.Table.from_arrays(columns, schema=ALIAS_SCHEMA)


def ascending(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, equal neighbours once; refuses rows out of order, and two contents of one image."""
    last = None
    for table in tables:
        table = pa.concat_tables([last, table]) if last is not None else table
        images = table.column("image_sha256")
        before, after = images.slice(0, len(images) - 1), images.slice(1)
        if pc.any(wrong := pc.greater(before, after)).as_py():
            at = pc.index(wrong, True).as_py()
            raise ReleaseError(
                f"rows: image {after[at].as_py()} comes after {before[at].as_py()}; sort the rows by image_sha256"
            )
        same = pc.equal(before, after)
        if pc.any(same).as_py():
            for at in pc.indices_nonzero(same).to_pylist():
                if not table.slice(at, 1).equals(table.slice(at + 1, 1)):
                    raise ReleaseConflict(
                        f"image {before[at].as_py()} has two different rows (captions, size or embedding); "
                        "two runs of the teacher were mixed: keep one of them"
                    )
            table = table.filter(pa.chunked_array([pa.array([True]), *pc.invert(same).chunks]))
        yield table.slice(0 if last is None else 1)
        last = table.slice(len(table) - 1)


def regroup(blocks: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
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


def _tables(rows: Iterable, build) -> Iterator[pa.Table]:
    if isinstance(rows, pa.Table | pa.RecordBatch):
        rows = [rows]
    loose: list = []
    for row in rows:
        if isinstance(row, pa.Table | pa.RecordBatch):
            table = row if isinstance(row, pa.Table) else pa.Table.from_batches([row])
            for start in range(0, len(table), 4 * _CHUNK):
                yield table.slice(start, 4 * _CHUNK)
            continue
        loose.append(row)
        if len(loose) == _CHUNK:
            yield build(loose)
            loose = []
    if loose:
        yield build(loose)


def _table_of_dicts(chunk: list[Mapping], dim: int, apart: Sequence[str]) -> pa.Table:
    def vectors(values: list) -> pa.Array:
        arrays = [np.asarray(value) for value in values]
        bad = [array.shape for array in arrays if array.shape != (dim,)]
        if bad:
            raise ReleaseError(f"rows: an embedding has shape {bad[0]}, and the release says dim={dim}")
        stacked = np.stack(arrays)
        return pa.FixedSizeListArray.from_arrays(pa.array(stacked.reshape(-1)), dim)

    columns = {name: pa.array([row[name] for row in chunk]) for name in ("image_sha256", "width", "height")}
    try:
        columns["captions"] = pa.array([row["captions"] for row in chunk], _LOOSE_CAPTIONS)
    except UnicodeEncodeError as error:
        raise ReleaseError(
            f"captions: {error.object[:60]!r} holds half a surrogate, which is no text; put U+FFFD in its place"
        ) from None
    columns["embedding"] = vectors([row["embedding"] for row in chunk])
    for perspective in apart:
        columns[f"embedding_{perspective}"] = vectors([row["embeddings"][perspective] for row in chunk])
    return pa.table(columns)


def _column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise ReleaseError(f"rows: no column {name!r} among {table.column_names}")
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)


def _sha256s(column: pa.Array) -> pa.Array:
    column = column.cast(pa.string())
    good = pc.fill_null(pc.match_substring_regex(column, "^[0-9a-f]{64}$"), False)
    if not pc.all(good).as_py():
        value = column.filter(pc.invert(good))[0].as_py()
        raise ReleaseError(f"image_sha256: {value!r} is not 64 lower-case hexadecimal digits")
    return column


def _is_text(what: str, *columns: pa.Array) -> None:
    try:
        for column in columns:
            column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise ReleaseError(f"{what}: bytes that are not UTF-8 ({error}); put U+FFFD in their place") from None


def _size(column: pa.Array, name: str) -> pa.Array:
    column = column.cast(pa.int32())
    if column.null_count or pc.min(column).as_py() < 1:
        raise ReleaseError(f"{name}: every image has a size of at least 1 pixel, and a row says otherwise")
    return column


def _captions(column: pa.Array, perspectives: list[str], sha256s: pa.Array) -> pa.Array:
    """Each row's captions in the order of their perspectives' names; unknown, doubled or null ones are refused."""
    try:
        column = column.cast(_LOOSE_CAPTIONS)
    except pa.ArrowException as error:
        raise ReleaseError(f"captions: {column.type} is not a list of {CAPTION} ({error})") from None
    flat = column.flatten()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    children = [pc.struct_field(flat, field.name).cast(field.type) for field in CAPTION]
    _is_text("captions", children[0], children[1], children[3])
    for field, child in zip(CAPTION, children, strict=True):
        if child.null_count:
            raise ReleaseError(f"captions: {child.null_count} of them have no {field.name}")
    row = np.repeat(np.arange(len(column)), lengths)
    code = pc.index_in(children[0], pa.array(perspectives, pa.string()))
    if code.null_count:
        unknown = children[0].filter(pc.is_null(code))[0].as_py()
        raise ReleaseError(f"captions: perspective {unknown!r} has no fingerprint; the release names {perspectives}")
    place = row * len(perspectives) + code.to_numpy()
    order = np.argsort(place, kind="stable")
    doubled = np.flatnonzero(np.diff(place[order]) == 0)
    if len(doubled):
        image = sha256s[int(row[order[doubled[0]]])].as_py()
        raise ReleaseError(f"captions: image {image} has two captions of one perspective")
    if not np.array_equal(order, np.arange(len(order))):
        children = [child.take(pa.array(order)) for child in children]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(children, fields=list(CAPTION)), type=CAPTIONS)


def _vectors(column: pa.Array, dim: int, name: str, sha256s: pa.Array) -> pa.Array:
    """[n] lists of dim floats → [n] lists of dim float16, of unit length.

    float16 input of unit length is kept bit for bit (it comes from a release, and merging must not wear it down);
    everything else is normalised in float64 and rounded once.
    """
    flat = column.flatten()
    if column.null_count or flat.null_count or len(flat) != len(column) * dim:
        raise ReleaseError(f"{name}: {len(flat)} numbers in {len(column)} rows, and the release says dim={dim}")
    vectors = flat.to_numpy(zero_copy_only=False).reshape(-1, dim)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if len(bad):
        raise ReleaseError(f"{name}: image {sha256s[int(bad[0])].as_py()} has a vector of length {norms[bad[0]]}")
    if vectors.dtype != np.float16 or np.abs(norms - 1).max() > NORM_TOLERANCE:
        keep = np.abs(norms - 1) <= NORM_TOLERANCE if vectors.dtype == np.float16 else np.zeros(len(norms), bool)
        rounded = (vectors / norms[:, None]).astype(np.float16)
        rounded[keep] = vectors[keep]
        vectors = rounded
    vector = feature_schema(dim).field("embedding").type
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).reshape(-1)), type=vector)
