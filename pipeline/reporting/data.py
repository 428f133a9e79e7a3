"""Section "Data": what the student sees."""

import io
import json
import zlib
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
    pairs = inputs.pairs
    splits = sorted({split for *_, split in pairs.of_set}, key=lambda split: ("train val test".find(split), split))
    told = f"{pairs.n:,} pairs of a degraded and a clean image, made of {pairs.images:,} different clean images of "
    told += f"{pairs.sides[0]} to {pairs.sides[1]} pixels a side."
    if bad := sorted(pairs.left_out.items()):
        told += f" Left out: {listed(f'{n} {status}' for status, n in bad)}; see {INDEX} --check."
    sets = sorted({of_set[:3] for of_set in pairs.of_set})
    table = [
        [pretty(name), pretty(domain), pretty(task), *(f"{pairs.of_set[domain, name, task, s]:,}" for s in splits)]
        for domain, name, task in sets
    ]
    yield Table("Pairs by data set", told, ["data set", "domain", "task", *splits], table, (0, 1, 2))


def examples(inputs: Inputs) -> Iterator[Block]:
    """One pair of every data set, degraded beside clean."""
    rows = sorted(inputs.pairs.first.values(), key=lambda row: (row["domain"], row["dataset"]))
    shown = [(row["dataset"], row) for row in rows[: inputs.config.max_datasets]]
    told = f"{len(shown)} of {len(rows)} data sets. " if len(shown) < len(rows) else ""
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


def clean(row: dict[str, Any] | None) -> bytes:
    """The clean image alone."""
    if row is None:
        raise KeyError("an image of the release is not in the index")
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
