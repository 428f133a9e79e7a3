"""Plain files for tools that read neither parquet nor our manifest."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from shards.folder import fsync
from shards.reader import Release
from shards.schema import ReleaseError

FORMATS = ("npy", "jsonl", "csv")
_CHUNK = 4096


def export(release: Release, out: str | Path, form: str, progress: Callable[[int], object] | None = None) -> None:
    """Write a release (or a subset) to `out`.

    npy: float16 [rows, dim] at `out`, and the images' hashes, one a line, beside it in `<out>.sha256.txt`.
    jsonl: one object an image: image_sha256, width, height, captions {perspective: text}.
    csv: one line a caption: image_sha256, perspective, text, n_tokens, finish_reason.
    Raises ReleaseError if `out` exists; what is there after a crash is complete.
    """
    out = Path(out)
    if out.exists():
        raise ReleaseError(f"{out}: exists; remove it or choose another name")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        {"npy": _npy, "jsonl": _jsonl, "csv": _csv}[form](release, temporary, out, progress or (lambda rows: None))
        fsync(temporary)
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _npy(release: Release, temporary: Path, out: Path, progress) -> None:
    names = out.with_name(f"{out.name}.sha256.txt")
    names.write_text("".join(f"{sha256}\n" for sha256 in release.sha256s()))
    fsync(names)
    with open(temporary, "wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": (len(release), release.dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(release), _CHUNK):
            file.write(release.vectors(start, start + _CHUNK).tobytes())
            progress(min(start + _CHUNK, len(release)))


def _jsonl(release: Release, temporary: Path, out: Path, progress) -> None:
    with open(temporary, "w", encoding="utf-8") as file:
        for done, row in enumerate(_records(release), 1):
            row["captions"] = {caption["perspective"]: caption["text"] for caption in row["captions"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            progress(done)


def _csv(release: Release, temporary: Path, out: Path, progress) -> None:
    with open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_sha256", "perspective", "text", "n_tokens", "finish_reason"])
        for done, row in enumerate(_records(release), 1):
            for c in row["captions"]:
                writer.writerow([row["image_sha256"], c["perspective"], c["text"], c["n_tokens"], c["finish_reason"]])
            progress(done)


def _records(release: Release):
    for batch in release.iter_batches(_CHUNK, ["image_sha256", "width", "height", "captions"]):
        yield from batch.to_pylist()
