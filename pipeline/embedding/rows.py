"""Captions of the store joined per image, and their vectors pooled into the prior of method.md: no files, no models."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from json.encoder import encode_basestring_ascii as _quoted

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioning.store import STATUSES, PerspectiveStore
from pipeline.indexing.table import Index
from shards.schema import vector_columns

_OK = STATUSES.index("ok")
_ESCAPED = np.frombuffer(b'"\\', np.uint8)


class EmbedError(ValueError):
    """Embedding cannot start or did not end well; one line with the remedy."""


@dataclass(frozen=True)
class CaptionBlock:
    """The images of one range of hashes that get a row, ascending, and their usable captions."""

    low: str
    high: str
    rows: pa.Table
    "image_sha256, width, height `[n]`"
    captions: dict[str, pa.Table]
    "perspective (in order of the names) -> caption, n_tokens, finish_reason, status `[n]`"
    ok: np.ndarray
    "bool `[n, perspectives]`: which of them are usable"
    labels: list[str] | None = None
    "of each image the one text that is embedded instead of the captions"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def images(self) -> pa.Array:
        """sha256 of each."""
        return self.rows["image_sha256"].combine_chunks()

    @cached_property
    def texts(self) -> dict[str, pa.Array]:
        """perspective -> the text of each image that is embedded, null where there is none."""
        labels = pa.array(self.labels, pa.string()) if self.labels else None
        return {
            name: pc.if_else(pa.array(ok), table["caption"] if labels is None else labels, None)
            for ok, (name, table) in zip(self.ok.T, self.captions.items(), strict=True)
        }

    @cached_property
    def digests(self) -> list[str]:
        """Of each image the sha256 over perspectives and texts: what its vector depends on besides the embedder."""
        # As json.dumps({perspective: text}, sort_keys=True) writes it, in a fraction of the time.
        keys, columns = [f"{_quoted(name)}: " for name in self.texts], list(self.texts.values())
        if self.ok.all() and all(map(_plain, columns)):
            pieces = [piece for key, column in zip(keys, columns, strict=True) for piece in (f', {key}"', column, '"')]
            rows = pc.binary_join_element_wise("{" + pieces[0][2:], *pieces[1:], "}", "").to_pylist()
        else:
            said = zip(*(column.to_pylist() for column in columns), strict=True)
            some = ([key + _quoted(t) for key, t in zip(keys, texts, strict=True) if t is not None] for texts in said)
            rows = [f"{{{', '.join(row)}}}" for row in some]
        return [sha256(row.encode()).hexdigest() for row in rows]


def _plain(texts: pa.Array | pa.ChunkedArray) -> bool:
    """Whether JSON writes all of them as they are: printable ASCII but for two characters."""
    for chunk in texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]:
        content = np.frombuffer(chunk.buffers()[2] or b" ", np.uint8)
        if content.min(initial=32) < 32 or content.max(initial=32) > 126 or np.isin(content, _ESCAPED).any():
            return False
    return True


@dataclass
class Tally:
    """What became of the images, for caption_stats.json and the summary line."""

    images: int = 0
    without_row: Counter = field(default_factory=Counter)
    "images left out of the release, by the worst status among their captions"
    partial: int = 0
    "images in the release that lack the caption of at least one perspective"
    status: dict[str, Counter] = field(default_factory=dict)
    finish: dict[str, Counter] = field(default_factory=dict)
    tokens: Counter = field(default_factory=Counter)


def caption_blocks(
    index: Index,
    stores: Mapping[str, PerspectiveStore],
    need_all: bool,
    labelled: bool,
    tally: Tally,
    ranges: Iterable[tuple],
    advance: Callable[[int], None] = lambda n: None,
) -> Iterator[CaptionBlock]:
    """The captions of the images in `ranges` (each begins with `low, high`); those without a usable one are tallied.

    With `need_all` an image that lacks one perspective is left out. With `labelled` the domains' names are embedded
    instead of captions. Raises `EmbedError` if the store lacks an image.
    """
    names = sorted(stores)
    for low, high, *_ in ranges:
        block = index.block(low, high)
        columns = ["caption", "n_tokens", "finish_reason", "status"]
        held = {name: stores[name].best(block.images, columns) for name in names}
        codes = [pc.fill_null(pc.index_in(table["status"], pa.array(STATUSES)), -1) for table in held.values()]
        status = np.stack([column.to_numpy() for column in codes], axis=1)
        if (status < 0).any():
            image = int(np.flatnonzero((status < 0).any(axis=1))[0])
            absent = next(name for name in stores if status[image, names.index(name)] < 0)
            raise EmbedError(
                f"image {block.images[image].as_py()} of the index has no caption for perspective {absent!r}: "
                "run python -m pipeline.caption first"
            )
        ok = status == _OK
        usable = ok.all(axis=1) if need_all else ok.any(axis=1)
        _count(tally, held, status)
        left_out = np.bincount(status[~usable].max(axis=1, initial=0), minlength=len(STATUSES))
        tally.without_row.update({name: int(n) for name, n in zip(STATUSES, left_out, strict=True) if n})
        tally.partial += int((usable & ~ok.all(axis=1)).sum())
        columns = {"image_sha256": block.images, **{name: block.first(name) for name in ("width", "height")}}
        rows, labels = pa.table(columns), block.labels() if labelled else None
        if not usable.all():
            mine = np.flatnonzero(usable)
            rows, held = rows.take(mine), {name: table.take(mine) for name, table in held.items()}
            ok, labels = ok[usable], labels and [labels[image] for image in mine]
        yield CaptionBlock(low, high, rows, held, ok, labels)
        advance(len(block))


def _count(tally: Tally, held: Mapping[str, pa.Table], status: np.ndarray) -> None:
    tally.images += len(status)
    for (name, table), of_name in zip(held.items(), status.T, strict=True):
        counts = np.bincount(of_name, minlength=len(STATUSES))
        tally.status.setdefault(name, Counter()).update({s: int(n) for s, n in zip(STATUSES, counts, strict=True) if n})
        good = table if counts[_OK] == len(table) else table.filter(pa.array(of_name == _OK))
        reasons = pc.value_counts(good["finish_reason"]).to_pylist()
        tally.finish.setdefault(name, Counter()).update({reason["values"]: reason["counts"] for reason in reasons})
        tally.tokens[name] += pc.sum(good["n_tokens"], min_count=0).as_py()


def pool(vectors: Mapping[str, np.ndarray], pooling: str, apart: Iterable[str]) -> np.ndarray:
    """Vectors float32 `[n, d]` of each perspective -> float16 `[n, columns, dim]`: the prior, then those kept apart.

    `mean`: the L2-normalised mean of the L2-normalised vectors [ours]; `concat`: one after the other by perspective
    name, L2-normalised; `joined` and `label`: the vectors are equal already, and their mean is that vector.
    Vectors can be kept apart only with `mean`: the columns of a release have one dim.
    """
    each = (_unit(vectors[name]) for name in sorted(vectors))  # one by one, so that they stay in the cache of a core
    pooled = np.concatenate([*each], axis=-1) if pooling == "concat" else sum(each, next(each)) / len(vectors)
    columns = [_unit(pooled), *(_unit(vectors[name]) for name in sorted(apart))]
    return np.stack([column.astype(np.float16) for column in columns], axis=1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """In float64."""
    vectors = vectors.astype(np.float64)
    # Row by row the very sum that numpy.linalg.norm takes of one vector, so that no bit depends on n.
    vectors /= np.sqrt(vectors[:, None, :] @ vectors[:, :, None])[:, 0]
    return vectors


def release_table(block: CaptionBlock, vectors: np.ndarray, apart: Iterable[str]) -> pa.Table:
    """Rows for `shards.write_release`: `vectors` float16 `[n, columns, dim]` as `pool` made them."""
    image, perspective = np.nonzero(block.ok)  # by image, then by name
    order = pa.array(perspective * len(block) + image)
    tables = list(block.captions.values())
    children = [pa.array(list(block.captions)).take(pa.array(perspective))]
    for column in ("caption", "n_tokens", "finish_reason"):
        children.append(pa.concat_arrays([table[column].combine_chunks() for table in tables]).take(order))
    struct = pa.StructArray.from_arrays(children, ["perspective", "text", "n_tokens", "finish_reason"])
    offsets = np.concatenate([[0], np.cumsum(block.ok.sum(axis=1))]).astype(np.int32)
    table = block.rows.append_column("captions", pa.ListArray.from_arrays(pa.array(offsets), struct))
    for number, name in enumerate(vector_columns(list(apart))):
        flat = pa.array(np.ascontiguousarray(vectors[:, number]).reshape(-1))
        table = table.append_column(name, pa.FixedSizeListArray.from_arrays(flat, vectors.shape[2]))
    return table


def stats(
    tally: Tally,
    perspectives: Mapping[str, str],
    rows: int,
    dim: int,
    fingerprints: Mapping[str, str],
    truncated: Counter,
) -> dict:
    """caption_stats.json: counts only, no times, so that equal input gives equal bytes."""
    per_perspective = {}
    for name in sorted(perspectives):
        captions = tally.status[name]["ok"]
        per_perspective[name] = {
            "prompt": perspectives[name],
            "fingerprint": fingerprints[name],
            **{status: tally.status[name][status] for status in sorted(tally.status[name])},
            "mean_tokens": round(tally.tokens[name] / captions, 2) if captions else 0.0,
            "cut_by_max_new_tokens": tally.finish.get(name, Counter())["length"],
            "cut_by_embedder": truncated[name],
        }
    return {
        "images": tally.images,
        "rows": rows,
        "images_without_row": dict(sorted(tally.without_row.items())),
        "images_with_some_perspectives_only": tally.partial,
        "dim": dim,
        "perspectives": per_perspective,
    }
