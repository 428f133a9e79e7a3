"""Join releases of one teacher, and compare any two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from shards.reader import Release, open_release
from shards.schema import ReleaseError
from shards.writer import write_release

_SAME = ("teacher_fingerprint", "embedding_fingerprint", "fingerprints", "dim", "apart", "teacher", "embedder")
_CHUNK = 4096


def merge(sources: Sequence[str | Path], out_dir: str | Path, progress: Callable[[int], object] | None = None) -> dict:
    """Write the union of releases to `out_dir`; returns its manifest.

    Vectors keep their bits, and the order of the sources does not matter. Raises ReleaseError if the sources differ
    in teacher, embedder or dimension, and ReleaseConflict if an image has different content in two of them. The
    sources are read in strict mode. `out_dir` may be one of them.
    """
    releases = [open_release(source, strict=True) for source in sources]
    first = releases[0].manifest
    for release in releases[1:]:
        for key in _SAME:
            if release.manifest[key] != first[key]:
                raise ReleaseError(
                    f"{release.path}: {key} differs from that of {releases[0].path}; only releases of one teacher and "
                    f"embedder can be merged ({_short(first[key])} and {_short(release.manifest[key])})"
                )
    return write_release(
        out_dir,
        chain.from_iterable(release.iter_batches() for release in releases),
        (release.aliases() for release in releases),
        **{key: first[key] for key in ("teacher", "embedder", "fingerprints", "teacher_fingerprint", "dim", "apart")},
        created_by=first["created_by"],
        progress=progress,
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def diff(a: str | Path, b: str | Path) -> dict:
    """What differs between two releases: images in one only, and of the common ones those with other content.

    Returns `{"identity": [keys of the manifest that differ], "only_a", "only_b", "common", "captions", "embeddings":
    counts, "examples": {kind: up to five hashes}}`. Vectors are compared bit for bit where the dimensions agree (and
    count as changed where they do not).
    """
    one, two = open_release(a), open_release(b)
    result = {"identity": [key for key in _SAME if one.manifest[key] != two.manifest[key]]}
    kinds = {"only_a": 0, "only_b": 0, "common": 0, "captions": 0, "embeddings": 0}
    examples: dict[str, list[str]] = {}

    def count(kind: str, sha256s: list[str]) -> None:
        kinds[kind] += len(sha256s)
        if kind != "common":
            examples.setdefault(kind, []).extend(sha256s[: 5 - len(examples.get(kind, []))])

    for batch in two.iter_batches(_CHUNK, ["image_sha256"]):
        images = batch["image_sha256"].to_pylist()
        found = one.lookup_rows(images)[1]
        count("only_b", [image for image, there in zip(images, found, strict=True) if not there])
    right = _Cursor(two)
    for batch in one.iter_batches(_CHUNK, ["image_sha256", "captions"]):
        images, captions = batch["image_sha256"].to_pylist(), batch["captions"].to_pylist()
        found = two.lookup_rows(images)[1]
        count("only_a", [image for image, there in zip(images, found, strict=True) if not there])
        common = [image for image, there in zip(images, found, strict=True) if there]
        count("common", common)
        mine = [caption for caption, there in zip(captions, found, strict=True) if there]
        count("captions", [i for i, x, y in zip(common, mine, right.captions(common), strict=True) if x != y])
        if not common:
            continue
        if one.dim != two.dim or one.manifest["apart"] != two.manifest["apart"]:
            count("embeddings", common)
            continue
        same = np.ones(len(common), bool)
        for column in one.vector_columns:
            same &= (one.lookup(common, column)[0] == two.lookup(common, column)[0]).all(axis=1)
        count("embeddings", [image for image, equal in zip(common, same, strict=True) if not equal])
    return {**result, **kinds, "examples": {kind: images for kind, images in examples.items() if images}}


class _Cursor:
    """Captions of ascending images in one pass over a release."""

    def __init__(self, release: Release) -> None:
        self.rows = (
            pair
            for batch in release.iter_batches(_CHUNK, ["image_sha256", "captions"])
            for pair in zip(batch["image_sha256"].to_pylist(), batch["captions"].to_pylist(), strict=True)
        )

    def captions(self, images: list[str]) -> list[list[dict]]:
        return [next(captions for image, captions in self.rows if image == wanted) for wanted in images]
