"""The page to look through captions (gallery.html) and its data, in parts which the page loads in turn."""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from shards.reader import Release
from student.files import write_file
from student.images.files import read_8_bit
from student.images.picture import ImageFileError, read_file
from student.images.workers import READ_SECONDS, ImageWorkers
from student.places import is_remote, join
from student.progress import progress

MOST = 100_000
"""Images on the page: their neighbours take time by the square (100,000 of 384 numbers: a minute or two)."""
PART = 2048
NEAREST = 8
ROWS, TILE = 256, 64
"""Images compared with all others at once; of so many neighbours the best is looked at first."""
SHOWN_BY_BROWSERS = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".webp", ".avif", ".bmp"}


def write_gallery(out: Path, folder: str, release: Release, names: list[str], texts: pa.Table, files: pa.Table) -> str:
    """Write `out`/index.html and `out`/page; returns what to tell of images that are not on it.

    texts: the captions of each row of `release`, a column a perspective; files: `path` below `folder`, and `row`.
    """
    first: dict[int, str] = {}  # of copies, the first
    for path, row in zip(files["path"].to_pylist(), files["row"].to_pylist(), strict=True):
        first.setdefault(row, path)
    shas, rows = release.sha256s(), sorted(first, key=lambda row: _natural(first[row]))[:MOST]
    unit = release.vectors()[rows].astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-12)
    near = neighbours(unit, min(NEAREST, len(unit) - 1))
    with progress("page", len(rows)) as advance, ImageWorkers(os.cpu_count() or 1, READ_SECONDS) as workers:

        def source(row: int) -> str:
            return _source(folder, first[row], shas[row], out, workers)

        for start in range(0, len(rows), PART):
            some = rows[start : start + PART]
            said = zip(*texts.take(some).to_pydict().values(), strict=True)
            columns = zip(some, workers.threads.map(source, some), said, near, strict=False)
            part = [{"path": first[row], "src": src, "captions": c, "near": n.tolist()} for row, src, c, n in columns]
            write_file(out / f"page/part-{start // PART:05d}.js", f"add({json.dumps(part)});\n")
            advance(len(some))
    told = f"; the page shows the first {len(rows)} images, captions.csv has all" * (len(first) > len(rows))
    data = {"perspectives": names, "images": len(rows), "parts": -(-len(rows) // PART), "told": told}
    write_file(out / "page/data.js", f"const DATA = {json.dumps(data)};\n")
    write_file(out / "index.html", Path(__file__).with_name("gallery.html").read_text(encoding="utf-8"))
    return told


def _natural(path: str) -> list:
    """Orders "2.png" before "10.png"."""
    return [part if i % 2 == 0 else int(part) for i, part in enumerate(re.split(r"(\d+)", path.casefold()))]


def neighbours(unit: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Of each row of `unit` [n, d] the `count` others of largest dot product, best first, without all n x n at once.

    Exact: the best `count` lie in the `count` tiles whose maxima are largest.
    """
    n, tiles = len(unit), -(-len(unit) // TILE)
    every = np.concatenate([unit, np.zeros((tiles * TILE - n, unit.shape[1]), np.float32)]).T
    held = np.empty((ROWS, tiles * TILE), np.float32)
    few = min(count, tiles)
    for start in range(0, n, ROWS):
        similarity = np.matmul(unit[start : start + ROWS], every, out=held[: min(ROWS, n - start)])
        itself = np.arange(len(similarity))
        similarity[itself, start + itself] = similarity[:, n:] = -np.inf
        best = np.argpartition(-similarity.reshape(-1, tiles, TILE).max(axis=2), few - 1, axis=1)[:, :few]
        at = (best[:, :, None] * TILE + np.arange(TILE)).reshape(len(similarity), -1)
        order = np.argsort(-np.take_along_axis(similarity, at, axis=1), axis=1, kind="stable")[:, :count]
        yield from np.take_along_axis(at, order, axis=1)


def _source(folder: str, path: str, sha256: str, out: Path, workers: ImageWorkers) -> str:
    """What `<img>` loads: the file itself by a relative path, or a small JPEG of it."""
    place = join(folder, path)
    if not is_remote(folder) and os.path.splitext(path)[1].lower() in SHOWN_BY_BROWSERS:
        return quote(os.path.relpath(place, out).replace(os.sep, "/"))
    small = out / "page" / f"{sha256}.jpg"
    try:
        if not small.exists():
            workers.call(_make_small, place, small)
    except (OSError, ImageFileError):
        return ""
    return f"page/{small.name}"


def _make_small(place: str, small: Path) -> None:
    picture = read_8_bit(read_file(place))
    picture.thumbnail((400, 400))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    write_file(small, content.getvalue())
