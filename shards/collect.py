"""Find caption-store folders that no release names any more."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shards import manifest as manifests
from shards.schema import MANIFEST, SHA256, ReleaseError


@dataclass(frozen=True)
class Unnamed:
    """A fingerprint's folder in the store that nothing keeps."""

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
        if SHA256.fullmatch(entry):
            kept.add(entry)
        else:
            kept.update(manifests.load(manifests.resolve(entry)[MANIFEST])["fingerprints"].values())
    folders = [f for f in sorted(store.iterdir()) if f.is_dir() and SHA256.fullmatch(f.name) and f.name not in kept]
    return [_measure(folder) for folder in folders]


def _measure(folder: Path) -> Unnamed:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Unnamed(folder, len(files), sum(path.stat().st_size for path in files))


def remove(found: Sequence[Unnamed]) -> None:
    """Delete the folders. Each leaves the store by one rename first, so that no half-emptied fingerprint remains."""
    for entry in found:
        going = entry.folder.with_name(f".gc-{entry.folder.name}")
        entry.folder.rename(going)
        shutil.rmtree(going)
