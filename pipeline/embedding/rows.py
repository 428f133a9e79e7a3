"""Captions of the store joined per image, and their vectors pooled into the prior of method.md: no files, no models."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from pipeline.captioning.store import STATUSES, PerspectiveStore, hash_ranges


class EmbedError(ValueError):
    """Embedding cannot start or did not end well; one line with the remedy."""


@dataclass(frozen=True)
class ImageCaptions:
    """The usable captions of one image (perspective -> store row)."""

    sha256: str
    captions: dict[str, dict]
    label: str | None = None
    "the one text that is embedded instead of the captions"

    @property
    def texts(self) -> dict[str, str]:
        """perspective -> the text that is embedded."""
        return {name: self.label or row["caption"] for name, row in self.captions.items()}

    @property
    def digest(self) -> str:
        """sha256 over perspectives and texts: what the vector depends on besides the embedder."""
        return hashlib.sha256(json.dumps(self.texts, sort_keys=True).encode()).hexdigest()


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


def caption_ranges(
    images: Iterable[str],
    stores: Mapping[str, PerspectiveStore],
    need_all: bool,
    tally: Tally,
    advance: Callable[[int], None] = lambda n: None,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, str, list[ImageCaptions]]]:
    """Yield `(low, high, images)` by ranges of sha256, ordered; images without a usable caption are only tallied.

    With `need_all` an image that lacks one perspective is left out. `labels` (by sha256) are embedded instead of
    captions. Raises `EmbedError` if the store lacks an image.
    """
    wanted = sorted(images)
    position = 0
    for low, high in hash_ranges(len(wanted)):
        rows = {name: store.rows(low, high) for name, store in stores.items()}
        usable, started = [], position
        while position < len(wanted) and wanted[position] < high:
            sha256 = wanted[position]
            position += 1
            of_image = {name: rows[name].get(sha256) for name in stores}
            if absent := [name for name, row in of_image.items() if row is None]:
                raise EmbedError(
                    f"image {sha256} of the index has no caption for perspective {absent[0]!r}: "
                    "run python -m pipeline.caption first"
                )
            _count(of_image, tally)
            captions = {name: row for name, row in of_image.items() if row["status"] == "ok"}
            failures = [row["status"] for row in of_image.values() if row["status"] != "ok"]
            if not captions or need_all and failures:
                tally.without_row[max(failures, key=STATUSES.index)] += 1
                continue
            tally.partial += bool(failures)
            usable.append(ImageCaptions(sha256, captions, labels.get(sha256)))
        yield low, high, usable
        advance(position - started)


def _count(of_image: Mapping[str, dict], tally: Tally) -> None:
    tally.images += 1
    for name, row in of_image.items():
        tally.status.setdefault(name, Counter())[row["status"]] += 1
        if row["status"] == "ok":
            tally.finish.setdefault(name, Counter())[row["finish_reason"]] += 1
            tally.tokens[name] += row["n_tokens"]


def pool(vectors: Mapping[str, np.ndarray], pooling: str, apart: Iterable[str]) -> np.ndarray:
    """Unit vectors float32 `[d]` per perspective -> float16 `[columns, dim]`: the prior, then those kept apart.

    `mean`: the L2-normalised mean of the L2-normalised vectors [ours]; `concat`: one after the other by perspective
    name, L2-normalised; `joined` and `label`: the vectors are equal already, and their mean is that vector.
    Vectors can be kept apart only with `mean`: the columns of a release have one dim.
    """
    unit = {name: _unit(vectors[name].astype(np.float64)) for name in sorted(vectors)}
    vectors_of = list(unit.values())
    pooled = np.concatenate(vectors_of) if pooling == "concat" else np.mean(vectors_of, axis=0)
    return np.stack([_unit(pooled), *(unit[name] for name in sorted(apart))]).astype(np.float16)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def release_row(image: ImageCaptions, size: tuple[int, int], vectors: np.ndarray, apart: Iterable[str]) -> dict:
    """A row for `shards.write_release`: `vectors` float16 `[columns, dim]` as `pool` made them."""
    captions = [
        {
            "perspective": name,
            "text": row["caption"],
            "n_tokens": row["n_tokens"],
            "finish_reason": row["finish_reason"],
        }
        for name, row in sorted(image.captions.items())
    ]
    row = {"image_sha256": image.sha256, "width": size[0], "height": size[1], "captions": captions}
    return {**row, "embedding": vectors[0], "embeddings": dict(zip(sorted(apart), vectors[1:], strict=True))}


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
