"""Plain files for tools that read neither parquet nor our manifest."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from shards.reader import Release
from shards.replace import fsync
from shards.schema import ReleaseError

FORMATS = ("npy", "jsonl", "csv")
_CHUNK = 4096
_CELLS = ["image_sha256", "perspective", "text", "n_tokens", "finish_reason", "files"]


def export(release: Release, out: str | Path, form: str, progress: Callable[[int], object] | None = None) -> None:
    """Write a release (or a subset) to `out`, each hash with the names of its files, relative to the index's root.

    npy: float16 [rows, dim] at `out`, and beside it in `<out>.sha256.txt` one line an image: its hash and its files,
        with tabs between.
    jsonl: one object an image: image_sha256, width, height, captions {perspective: text}, files [{path, dataset,
        domain}].
    csv: one line a caption: image_sha256, perspective, text, n_tokens, finish_reason, files (with "; " between). For
        spreadsheets: text that they would take for a formula begins with an apostrophe.
    Raises ReleaseError if `out` exists; what is there after a crash is complete.
    """
    out = Path(out)
    if out.exists():
        raise ReleaseError(f"{out}: exists; remove it or choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    files: dict[str, list[dict]] = {}
    for alias in release.aliases().to_pylist():
        files.setdefault(alias.pop("image_sha256"), []).append(alias)
    try:
        {"npy": _npy, "jsonl": _jsonl, "csv": _csv}[form](release, files, temporary, out, progress or (lambda n: None))
        fsync(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _npy(release: Release, files: dict[str, list[dict]], temporary: Path, out: Path, progress) -> None:
    names = out.with_name(f"{out.name}.sha256.txt")
    # Tabs and line ends in a file's name would break the line; backslashes say where they were.
    lines = ([image, *(repr(f["path"])[1:-1] for f in files.get(image, ()))] for image in release.sha256s())
    names.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    fsync(names)
    with open(temporary, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(release), release.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(release), _CHUNK):
            file.write(release.vectors(start, start + _CHUNK).tobytes())
            progress(min(start + _CHUNK, len(release)))


def _jsonl(release: Release, files: dict[str, list[dict]], temporary: Path, out: Path, progress) -> None:
    with open(temporary, "w", encoding="utf-8") as file:
        for done, row in enumerate(_records(release), 1):
            row["captions"] = {caption["perspective"]: caption["text"] for caption in row["captions"]}
            row["files"] = files.get(row["image_sha256"], [])
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress(done)


def _csv(release: Release, files: dict[str, list[dict]], temporary: Path, out: Path, progress) -> None:
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _CELLS, lineterminator="\n")
        writer.writeheader()
        for done, row in enumerate(_records(release), 1):
            paths = "; ".join(f["path"] for f in files.get(row["image_sha256"], ()))
            for caption in row["captions"]:
                cells = {"image_sha256": row["image_sha256"], **caption, "files": paths}
                writer.writerow({name: _no_formula(value) for name, value in cells.items()})
            progress(done)


def _no_formula(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _records(release: Release) -> Iterator[dict]:
    for batch in release.iter_batches(_CHUNK, ["image_sha256", "width", "height", "captions"]):
        yield from batch.to_pylist()
