"""Copy releases, join those of one teacher, compare any two, and find what none of them names any more."""

from __future__ import annotations

import hashlib
import heapq
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from shards.folder import open_folder
from shards.reader import Release, open_release
from shards.remote import CHUNK
from shards.replace import staged
from shards.schema import MANIFEST, SHA256, DamagedRelease, ReleaseError
from shards.writer import write_release

_SAME = ("teacher_fingerprint", "embedding_fingerprint", "fingerprints", "dim", "apart", "teacher", "embedder")
_NAMED = ("teacher", "embedder")
_CHUNK = 4096


def copy_release(source: str | Path, target: str | Path, progress: Callable[[int], object] | None = None) -> dict:
    """Copy a release, from or to an address too; returns its manifest.

    Every byte is compared with the manifest before the copy takes its place. `progress` is called with the bytes
    copied. Raises ReleaseError and DamagedRelease.
    """
    folder, done = open_folder(source), 0
    with staged(target) as fresh:
        for name in [*folder.listed, MANIFEST]:
            if name in folder.listed and (problem := folder.lacks(name)):
                raise DamagedRelease(f"{source}/{problem}; pull it again")
            file, digest = folder.files[name], hashlib.sha256()
            with open(fresh / name, "wb") as copy:
                for start in range(0, len(file), CHUNK):
                    digest.update(chunk := file[start : start + CHUNK])
                    copy.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done)
            if name in folder.listed and digest.hexdigest() != folder.listed[name]["sha256"]:
                raise DamagedRelease(f"{source}/{name}: altered (its sha256 is {digest.hexdigest()}); pull it again")
        folder.check()
    return folder.manifest


def merge(sources: Sequence[str | Path], out_dir: str | Path, progress: Callable[[int], object] | None = None) -> dict:
    """Write the union of releases to `out_dir`; returns its manifest.

    Vectors keep their bits, and the order of the sources does not matter. Raises ReleaseError if the sources differ
    in teacher, embedder or dimension, and ReleaseConflict if an image has different content in two of them. The
    sources are read in strict mode. `out_dir` may be one of them.
    """
    releases = [open_release(source, strict=True) for source in sources]
    # Two copies of one model may have two names, and what they are is in the fingerprints: the first in order stays.
    first = min(
        releases, key=lambda release: [str(release.manifest[key].get("name")) for key in ("teacher", "embedder")]
    )
    for release in releases:
        for key in _SAME:
            ours, theirs = _parts(first.manifest[key]), _parts(release.manifest[key])
            if differs := [part for part in sorted({*ours, *theirs}) if ours.get(part) != theirs.get(part)]:
                one, other = (_short(value.get(differs[0])) for value in (ours, theirs))
                raise ReleaseError(
                    f"{release.path}: {key}{differs[0]} differs from that of {first.path}; only releases of one "
                    f"teacher and embedder can be merged ({other} and {one})"
                )
    first = first.manifest
    return write_release(
        out_dir,
        heapq.merge(*map(_rows, releases), key=itemgetter("image_sha256")),
        (release.aliases() for release in releases),
        **{key: first[key] for key in ("teacher", "embedder", "fingerprints", "teacher_fingerprint", "dim", "apart")},
        created_by=first["created_by"],
        progress=progress,
    )


def _parts(value: object) -> dict[str, object]:
    """What must agree: a value under no name, or the entries of a dictionary but for its `name`."""
    if not isinstance(value, dict):
        return {"": value}
    return {f".{key}": part for key, part in value.items() if key != "name"}


def _rows(release: Release) -> Iterator[dict]:
    """The rows as `write_release` takes them, ascending by image."""
    for batch in release.iter_batches(_CHUNK):
        vectors = [
            batch.column(name).flatten().to_numpy(zero_copy_only=False).reshape(len(batch), release.dim)
            for name in release.vector_columns
        ]
        records = batch.select(["image_sha256", "width", "height", "captions"]).to_pylist()
        for record, embedding, *others in zip(records, *vectors, strict=True):
            apart = dict(zip(release.manifest["apart"], others, strict=True))
            yield {**record, "embedding": embedding, "embeddings": apart}


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
    kinds = dict.fromkeys(("only_a", "only_b", "common", "captions", "embeddings"), 0)
    examples: dict[str, list[str]] = {}
    comparable = one.dim == two.dim and one.manifest["apart"] == two.manifest["apart"]

    def count(kind: str, image: str) -> None:
        kinds[kind] += 1
        if kind != "common" and kinds[kind] <= 5:
            examples.setdefault(kind, []).append(image)

    def rows(release: Release, side: str) -> Iterator[tuple[str, str, dict]]:
        return ((row["image_sha256"], side, row) for row in _rows(release))

    both = heapq.merge(rows(one, "only_a"), rows(two, "only_b"), key=itemgetter(0))
    for image, found in groupby(both, itemgetter(0)):
        (_, side, mine), *others = found
        count("common" if others else side, image)
        for _, _, theirs in others:
            if mine["captions"] != theirs["captions"]:
                count("captions", image)
            if not comparable or _bits(mine) != _bits(theirs):
                count("embeddings", image)
    identity = [key for key in _SAME if one.manifest[key] != two.manifest[key]]
    return {"identity": identity, **kinds, "examples": examples}


def _bits(row: dict) -> list[bytes]:
    return [vector.tobytes() for vector in (row["embedding"], *row["embeddings"].values())]


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
