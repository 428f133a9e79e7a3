"""Section "Data": what the student sees."""

import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from pipeline.reporting.blocks import Block, Missing, Pictures, Table, listed, pretty
from pipeline.reporting.inputs import INDEX, Inputs
from student.images.files import read_rgb
from student.images.picture import ImageFileError, read_file
from student.images.sample_values import given_range

SIDE = 192
"""Longest side of an example; larger ones are cut to their centre, never scaled, so that noise stays noise."""
UNREADABLE = (ImageFileError, OSError, ValueError, KeyError)


def counts(inputs: Inputs) -> Iterator[Block]:
    """Usable pairs per data set and split, and everything in the index that is not usable."""
    splits = sorted({row["split"] for row in inputs.pairs}, key=lambda split: ("train val test".find(split), split))
    rows = Counter((row["dataset"], row["split"]) for row in inputs.pairs)
    sets = {row["dataset"]: [pretty(row[key]) for key in ("dataset", "domain", "task")] for row in inputs.pairs}
    sides = [row[side] for row in inputs.pairs for side in ("width", "height")]
    bad = Counter(row["status"] for row in inputs.index if row["status"] != "ok")
    told = (
        f"{len(inputs.pairs):,} pairs of a degraded and a clean image, made of {len(inputs.clean):,} different clean "
    )
    told += f"images of {min(sides)} to {max(sides)} pixels a side."
    if bad:
        told += f" Left out: {listed(f'{n} {status}' for status, n in sorted(bad.items()))}; see {INDEX} --check."
    table = [[*about, *(f"{rows[name, split]:,}" for split in splits)] for name, about in sets.items()]
    yield Table("Pairs by data set", told, ["data set", "domain", "task", *splits], table, (0, 1, 2))


def examples(inputs: Inputs) -> Iterator[Block]:
    """One pair of every data set, degraded beside clean."""
    first = {row["dataset"]: row for row in reversed(inputs.pairs)}
    shown, unreadable = [], []
    for name, row in list(reversed(first.items()))[: inputs.config.max_datasets]:
        try:
            gt = pixels(row, row["gt_path"])
            shown.append(
                (png(pixels(row, row["lq_path"]) if row["lq_path"] else degraded(row, gt), gt), pretty(name), ())
            )
        except UNREADABLE as error:
            unreadable.append(f"{row['gt_path']}: {error}")
    if shown:
        told = f"{len(shown)} of {len(first)} data sets. " if len(shown) < len(first) else ""
        yield Pictures("Examples", told + "Left what the student gets, right the clean image.", shown)
    if unreadable:
        raise Missing(f"examples that cannot be read: {len(unreadable)}, the first {unreadable[0]}", INDEX)


def pixels(row: dict[str, Any], path: str) -> np.ndarray:
    """float32 `[H, W, 3]` in [0, 1], as training sees it: both images of a pair in the row's range."""
    span = row.get("range")
    return read_rgb(read_file(path), given_range(*json.loads(span)) if span else None).transpose(1, 2, 0)


def degraded(row: dict[str, Any], gt: np.ndarray) -> np.ndarray:
    """What training makes of a clean image on the fly, seeded by the file's name."""
    from student.data.degradations import DegradationSpec, degrade  # scipy: only where it is needed

    spec = DegradationSpec.model_validate_json(row["degradation"])
    return degrade(gt, spec, np.random.default_rng(zlib.crc32(row["gt_path"].encode(errors="replace"))))


def png(*images: np.ndarray) -> bytes:
    """Images `[H, W, 3]` in [0, 1] beside each other, of each its centre."""
    cut = []
    for image in images:
        top, left = (max(0, (size - SIDE) // 2) for size in image.shape[:2])
        image = image[top : top + SIDE, left : left + SIDE]
        cut.append(np.pad(image, ((0, SIDE - image.shape[0]), (0, 4), (0, 0)), constant_values=1))
    sheet = np.concatenate(cut, axis=1)[: max(image.shape[0] for image in images), :-4]
    buffer = io.BytesIO()
    Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


BLOCKS = (counts, examples)
