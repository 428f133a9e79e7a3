"""manifest.json: what a release consists of. Written last, read first, and it vouches for every other byte."""

from __future__ import annotations

import json
from pathlib import Path

from shards.schema import (
    ALIASES,
    CARD,
    FORMAT_VERSION,
    INDEX,
    PART,
    SHA256,
    DamagedRelease,
    ReleaseError,
    sha256_json,
    vector_columns,
)

_SELF = "manifest_sha256"
_FILE = {"file": str, "bytes": int, "sha256": str}
_COUNTS = dict.fromkeys(("n", "tokens_p95", "tokens_max", "vocabulary"), int)
_SHAPE = {
    **dict.fromkeys(("format_version", "rows", "aliases", "aliases_without_row", "dim", "group_rows"), int),
    **dict.fromkeys(("teacher_fingerprint", "embedding_fingerprint", "created_by"), str),
    "apart": [str],
    "fingerprints": {str: str},
    "teacher": {str: object},
    "embedder": {str: object},
    "stats": {
        "captions": {str: {**_COUNTS, "tokens_mean": int | float, "finish_reasons": {str: int}}},
        "vocabulary": int,
        "sources": [{"domain": str, "dataset": str, "images": int, "files": int}],
        "extra": {str: object},
    },
    "parts": [{**_FILE, "rows": int, "first": str, "last": str, "vectors": {str: [int]}}],
    "files": [_FILE],
}


def dump(manifest: dict) -> bytes:
    """The file's bytes: readable JSON that carries the sha256 of its own canonical form."""
    body = {key: value for key, value in manifest.items() if key != _SELF}
    sealed = {_SELF: sha256_json(body), **body}
    return (json.dumps(sealed, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse(raw: bytes, path: str | Path) -> dict:
    """Parse and check a manifest: its seal, and that its values are of the types and sizes that the format names.

    Raises DamagedRelease, or ReleaseError on another version; `path` is for the message.
    """
    try:
        manifest = json.loads(raw)
        version = manifest.get("format_version") if isinstance(manifest, dict) else None
        # The version is judged before the seal: another version may seal itself in another way.
        if version != FORMAT_VERSION and isinstance(version, int):
            raise ReleaseError(
                f"{path}: format_version {version}, and this reader knows {FORMAT_VERSION}; "
                "install a matching teachonce"
            )
        sealed = version is not None and dump(manifest) == raw
    except (ValueError, RecursionError) as error:
        raise DamagedRelease(f"{path}: not JSON ({error}); pull the release again") from None
    if not sealed:
        raise DamagedRelease(f"{path}: altered after it was written; pull the release again")
    if problem := _misfit(manifest, _SHAPE, "") or _contradiction(manifest):
        raise DamagedRelease(f"{path}: {problem}; a faulty program wrote it: ask for another release")
    return manifest


def _misfit(value: object, shape: object, where: str) -> str | None:
    """The first place at which a JSON value is not of a shape: a type, [shape of all items], {str: of all values} or
    {key: shape} with more keys allowed. Integers are counts: from 0 to 2^53."""
    if isinstance(shape, list):
        items = enumerate(value) if isinstance(value, list) else None
        pairs = items and [(str(key), item, shape[0]) for key, item in items]
    elif isinstance(shape, dict):
        wanted = shape if str not in shape else dict.fromkeys(value, shape[str]) if isinstance(value, dict) else {}
        pairs = [(k, value.get(k), s) for k, s in wanted.items()] if isinstance(value, dict) else None
    else:
        right = isinstance(value, shape) and not isinstance(value, bool)
        if right and isinstance(value, int):
            right = 0 <= value < 1 << 53
        pairs = [] if right or shape is object else None
    if pairs is None:
        return f"{where or 'manifest'}: {str(value)[:40]!r} is not of the kind that the format names"
    return next((bad for k, item, s in pairs if (bad := _misfit(item, s, f"{where}.{k}".lstrip(".")))), None)


def _contradiction(manifest: dict) -> str | None:
    """What a manifest of the right shape says that cannot be, such as vectors that lie beyond their file."""
    dim, group, columns = manifest["dim"], manifest["group_rows"], vector_columns(manifest["apart"])
    if not (1 <= dim < 1 << 24 and 1 <= group <= 16384 and manifest["rows"]):
        return f"dim {dim}, group_rows {group}, rows {manifest['rows']}: one of them is out of range"
    if not manifest["fingerprints"] or not set(manifest["apart"]) <= set(manifest["fingerprints"]):
        return f"fingerprints: none, or not all of {manifest['apart']} that are kept apart"
    if [part["file"] for part in manifest["parts"]] != [PART.format(i) for i in range(len(manifest["parts"]))]:
        return "parts: their names are not features-00000.parquet and on"
    if sorted(entry["file"] for entry in manifest["files"]) != sorted((ALIASES, INDEX, CARD)):
        return f"files: are not {ALIASES}, {INDEX} and {CARD}"
    if sum(part["rows"] for part in manifest["parts"]) != manifest["rows"]:
        return f"rows: {manifest['rows']}, and the parts hold another number"
    for part in manifest["parts"]:
        name, rows = part["file"], part["rows"]
        sizes = [min(group, rows - start) for start in range(0, min(rows, part["bytes"]), group)]
        if sum(sizes) != rows or not rows or not all(SHA256.fullmatch(part[key]) for key in ("first", "last")):
            return f"{name}: {rows} rows from {part['first'][:64]!r} to {part['last'][:64]!r} cannot be"
        for column in columns:
            starts = part["vectors"].get(column, [])
            if len(starts) != len(sizes):
                return f"{name}: {len(starts)} row groups of {column}, and {rows} rows make {len(sizes)}"
            if any(at + 2 * dim * n > part["bytes"] for at, n in zip(starts, sizes, strict=True)):
                return f"{name}: vectors of {column} lie beyond the end of the file"
    return None
