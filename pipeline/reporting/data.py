"""Section "Data": what the student sees."""

import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
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
    shown = list(reversed(first.items()))[: inputs.config.max_datasets]
    told = f"{len(shown)} of {len(first)} data sets. " if len(shown) < len(first) else ""
    told += "Left what the student gets, right the clean image."
    yield from pictures("Examples", told, [(lambda row=row: pair(row), pretty(name), ()) for name, row in shown])


def pictures(title: str, told: str, wanted: list[tuple[Callable[[], bytes], str, Sequence]]) -> Iterator[Block]:
    """The pictures that can be drawn, each with its title and texts; the others are named as missing."""
    shown, unreadable = [], []
    for draw, name, texts in wanted:
        try:
            shown.append((draw(), name, texts))
        except (ImageFileError, OSError, ValueError, KeyError) as error:
            unreadable.append(f"{name}: {error}")
    if shown:
        yield Pictures(title, told, shown)
    if unreadable:
        raise Missing(
            f"{title}: {len(unreadable)} picture(s) not on disk or in the index, first {unreadable[0]}", INDEX
        )


def clean(row: dict[str, Any]) -> bytes:
    """The clean image alone."""
    return png(pixels(row, row["gt_path"]))


def pair(row: dict[str, Any]) -> bytes:
    """The degraded image beside the clean one; a degradation made on the fly is the one that is evaluated."""
    from student.data.degradations import DegradationSpec, degrade  # scipy: only where it is needed
    from student.data.resize import enlarge

    gt = pixels(row, row["gt_path"])
    if row["lq_path"]:
        lq, scale = pixels(row, row["lq_path"]), row.get("upsample")
        return png(enlarge(lq, scale) if scale else lq, gt)
    spec = DegradationSpec.model_validate_json(row["degradation"])
    return png(degrade(gt, spec, np.random.default_rng(zlib.crc32(Path(row["gt_path"]).name.encode()))), gt)


def pixels(row: dict[str, Any], path: str) -> np.ndarray:
    """float32 `[H, W, 3]` in [0, 1], as training sees it: both images of a pair in the row's range."""
    span = row.get("range")
    return read_rgb(read_file(path), given_range(*json.loads(span)) if span else None).transpose(1, 2, 0)


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
