"""Join releases of one teacher, compare any two, and find what none of them names any more."""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from shards.folder import open_folder
from shards.reader import Release, open_release
from shards.schema import SHA256, ReleaseError
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
        _merged(releases),
        (release.aliases() for release in releases),
        **{key: first[key] for key in ("teacher", "embedder", "fingerprints", "teacher_fingerprint", "dim", "apart")},
        created_by=first["created_by"],
        progress=progress,
    )


def _merged(releases: Sequence[Release]) -> Iterator[pa.Table]:
    """The rows of all releases in one ascending order; an image in several comes once for each."""
    order = heapq.merge(*(zip(release.sha256s(), repeat(i)) for i, release in enumerate(releases)))
    rows = [_Rows(release) for release in releases]
    while chunk := list(islice(order, _CHUNK)):
        of = np.array([i for _, i in chunk])
        table = pa.concat_tables([rows[i].take(int((of == i).sum())) for i in range(len(releases))])
        yield table.take(pa.array(np.argsort(np.argsort(of, kind="stable"))))


class _Rows:
    """The rows of a release, a number at a time."""

    def __init__(self, release: Release, columns: Sequence[str] | None = None) -> None:
        self.batches = release.iter_batches(_CHUNK, columns)
        self.held = pa.Table.from_batches([next(self.batches)])

    def take(self, n: int) -> pa.Table:
        while len(self.held) < n:
            self.held = pa.concat_tables([self.held, pa.Table.from_batches([next(self.batches)])])
        taken, self.held = self.held.slice(0, n), self.held.slice(n)
        return taken


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

    in_two, found = two.lookup_rows(one.sha256s())
    count("only_a", [image for image, there in zip(one.sha256s(), found, strict=True) if not there])
    in_one = np.isin(np.arange(len(two)), in_two[found])
    count("only_b", [image for image, there in zip(two.sha256s(), in_one, strict=True) if not there])
    rows = [_Rows(release, ["image_sha256", "captions"]) for release in (one, two)]
    mine, theirs = np.flatnonzero(found), in_two[found]
    comparable = one.dim == two.dim and one.manifest["apart"] == two.manifest["apart"]
    at = [0, 0]
    for start in range(0, len(mine), _CHUNK):
        pair = []
        for side, chosen in enumerate((mine[start : start + _CHUNK], theirs[start : start + _CHUNK])):
            table = rows[side].take(int(chosen[-1]) + 1 - at[side])
            pair.append(table.take(pa.array(chosen - at[side])).to_pylist())
            at[side] = int(chosen[-1]) + 1
        images = [row["image_sha256"] for row in pair[0]]
        count("common", images)
        count("captions", [image for image, a, b in zip(images, *pair, strict=True) if a != b])
        same = np.full(len(images), comparable)
        for column in one.vector_columns if comparable else ():
            same &= (one.lookup(images, column)[0] == two.lookup(images, column)[0]).all(axis=1)
        count("embeddings", [image for image, equal in zip(images, same, strict=True) if not equal])
    return {**result, **kinds, "examples": {kind: images for kind, images in examples.items() if images}}


class Unnamed(NamedTuple):
    """A fingerprint's folder in the caption store that nothing keeps."""

    folder: Path
    files: int
    bytes: int


def unnamed(store: str | Path, keep: Sequence[str]) -> list[Unnamed]:
    """Folders of `store` whose fingerprint no entry of `keep` names.

    keep: release folders (their manifest names one fingerprint a perspective) and plain fingerprints. Only folders
    named by 64 hexadecimal digits are ever considered. Raises ReleaseError if `keep` is empty or an entry is neither:
    a mistyped release must not turn into "nothing is kept".
    """
    store = Path(store)
    if not store.is_dir():
        raise ReleaseError(f"{store}: no such folder")
    if not keep:
        raise ReleaseError("gc: name at least one release or fingerprint to keep")
    kept: set[str] = set()
    for entry in keep:
        named = [entry] if SHA256.fullmatch(entry) else open_folder(entry).manifest["fingerprints"].values()
        kept.update(named)
    found = []
    for folder in sorted(store.iterdir()):
        if folder.is_dir() and SHA256.fullmatch(folder.name) and folder.name not in kept:
            sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
            found.append(Unnamed(folder, len(sizes), sum(sizes)))
    return found


def remove(found: Sequence[Unnamed]) -> None:
    """Delete the folders. Each leaves the store by one rename first, so that no half-emptied fingerprint remains."""
    for entry in found:
        going = entry.folder.with_name(f".gc-{entry.folder.name}")
        entry.folder.rename(going)
        shutil.rmtree(going)
