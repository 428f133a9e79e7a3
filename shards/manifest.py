"""manifest.json: what a release consists of. Written last, read first, and it vouches for every other byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from shards.schema import FORMAT_VERSION, MANIFEST, DamagedRelease, ReleaseError, sha256_json

_SELF = "manifest_sha256"


def dump(manifest: dict) -> bytes:
    """The file's bytes: readable JSON that carries the sha256 of its own canonical form."""
    body = {key: value for key, value in manifest.items() if key != _SELF}
    sealed = {_SELF: sha256_json(body), **body}
    return (json.dumps(sealed, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def load(path: Path) -> dict:
    """Parse and check a manifest. Raises DamagedRelease on any altered byte, ReleaseError on another version."""
    try:
        raw = path.read_bytes()
        manifest = json.loads(raw)
    except OSError as error:
        raise DamagedRelease(f"{path}: {error.strerror}; the folder is not a finished release") from None
    except ValueError as error:
        raise DamagedRelease(f"{path}: not JSON ({error}); pull the release again") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    # The version is judged before the seal: another version may seal itself in another way.
    if version != FORMAT_VERSION and isinstance(version, int):
        raise ReleaseError(
            f"{path}: format_version {version}, and this reader knows {FORMAT_VERSION}; install a matching teachonce"
        )
    if version is None or dump(manifest) != raw:
        raise DamagedRelease(f"{path}: altered after it was written; pull the release again")
    return manifest


def resolve(path: str | Path) -> dict[str, Path]:
    """File name → place on disk, for a release folder or for a directory entry (`*.dir`) of a DVC cache."""
    path = Path(path)
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            raise DamagedRelease(f"{path}: no {MANIFEST}; not a release, or its writing never finished{_left(path)}")
        return {entry.name: entry for entry in path.iterdir()}
    if path.is_file() and path.suffix == ".dir":
        cache = path.parent.parent
        return {entry["relpath"]: cache / entry["md5"][:2] / entry["md5"][2:] for entry in json.loads(path.read_text())}
    raise ReleaseError(f"{path}: no such release; give its folder (after `dvc pull`) or a DVC cache entry `*.dir`")


def _left(path: Path) -> str:
    previous = path.with_name(f".{path.name}.previous")
    return f" (an earlier one stands in {previous})" if previous.is_dir() else ""


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
