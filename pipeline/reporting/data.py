"""Section "Data": what the student sees."""

import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.reporting import style
from pipeline.reporting.blocks import Block, Figure, Gallery, Missing, Table, listed, pretty
from pipeline.reporting.inputs import INDEX, Inputs
from student.images.files import read_rgb
from student.images.picture import ImageFileError, read_file
from student.images.sample_values import given_range

SIDE = 192
"""Longest side of an example; larger ones are cut to their centre, never scaled, so that noise stays noise."""
UNREADABLE = (ImageFileError, OSError, ValueError)


def counts(inputs: Inputs) -> Iterator[Block]:
    """Usable pairs per data set and split, and everything in the index that is not usable."""
    pairs = inputs.pairs
    domain_of = {row["dataset"]: row["domain"] for row in pairs}
    splits = sorted({row["split"] for row in pairs}, key=lambda split: ("train val test".find(split), split))
    rows = Counter((row["dataset"], row["split"]) for row in pairs)
    figure, axes = style.canvas(1.2 + 0.36 * len(domain_of))
    left = np.zeros(len(domain_of))
    for split, shade in zip(splits, np.linspace(1, 0.4, len(splits)), strict=True):
        widths = np.array([rows[name, split] for name in domain_of], dtype=float)
        colours = [inputs.colours[domain] for domain in domain_of.values()]
        bars = axes[0, 0].barh(range(len(domain_of)), widths, left=left, color=colours, alpha=shade)
        labels = [f"{int(width)} {split}" if width > widths.sum() / 50 else "" for width in widths]
        axes[0, 0].bar_label(bars, labels, label_type="center", color="white" if shade == 1 else style.INK, fontsize=9)
        left += widths
    axes[0, 0].set_yticks(range(len(domain_of)), [pretty(name) for name in domain_of])
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_xlabel("pairs of a degraded and a clean image; a colour is a domain")
    domains = listed(pretty(name) for name in sorted(set(domain_of.values())))
    sides = [row[side] for row in pairs for side in ("width", "height")]
    yield Figure(
        "Pairs by data set",
        f"{len(pairs):,} pairs of {len({row['task'] for row in pairs})} task(s) in {domains}, made of "
        f"{len(inputs.clean):,} different clean images, {min(sides)} to {max(sides)} pixels a side.",
        style.png(figure),
        "Bars: the number of pairs of every data set, by split.",
        "data-pairs",
    )
    bad = Counter((row["dataset"], row["status"]) for row in inputs.index if row["status"] != "ok")
    if bad:
        yield Table(
            "Rows that are not used",
            f"{sum(bad.values())} of {len(inputs.index)} rows are left out; {INDEX} --check lists them.",
            ["data set", "reason", "rows"],
            [[pretty(dataset), status, str(n)] for (dataset, status), n in sorted(bad.items())],
            frozenset({0, 1}),
        )


def examples(inputs: Inputs) -> Iterator[Block]:
    """One pair of every data set, degraded beside clean."""
    first: dict[str, dict] = {}
    for row in sorted(inputs.pairs, key=lambda row: (row["domain"], row["dataset"], row["gt_sha256"])):
        first.setdefault(row["dataset"], row)
    shown, unreadable = [], []
    for name, row in list(first.items())[: inputs.config.max_datasets]:
        try:
            shown.append((pair(row), pretty(name)))
        except UNREADABLE as error:
            unreadable.append(f"{row['gt_path']}: {error}")
    if shown:
        told = f"{len(shown)} of {len(first)} data sets. " if len(shown) < len(first) else ""
        yield Gallery("Examples", told + "Left what the student gets, right the clean image.", shown)
    if unreadable:
        raise Missing(f"{len(unreadable)} example(s) cannot be read, the first: {unreadable[0]}", INDEX)


def pair(row: dict[str, Any]) -> bytes:
    """The degraded image beside the clean one; a degradation made on the fly is seeded by the file's name."""
    gt = pixels(row, row["gt_path"])
    if row["lq_path"]:
        lq = pixels(row, row["lq_path"])
    else:
        from student.data.degradations import DegradationSpec, degrade  # scipy: only where it is needed

        spec = DegradationSpec.model_validate_json(row["degradation"])
        lq = degrade(gt, spec, np.random.default_rng(zlib.crc32(Path(row["gt_path"]).name.encode(errors="replace"))))
    return png(lq, gt)


def pixels(row: dict[str, Any], path: str) -> np.ndarray:
    """float32 `[H, W, 3]` in [0, 1], as training sees it: both images of a pair in the row's range."""
    span = row.get("range")
    return read_rgb(read_file(path), given_range(*json.loads(span)) if span else None).transpose(1, 2, 0)


def png(*images: np.ndarray, side: int = SIDE) -> bytes:
    """Images `[H, W, 3]` in [0, 1] beside each other, of each its centre."""
    cut = []
    for image in images:
        top, left = (max(0, (size - side) // 2) for size in image.shape[:2])
        cut.append(image[top : top + side, left : left + side])
    sheet = np.ones((max(image.shape[0] for image in cut), sum(image.shape[1] + 4 for image in cut) - 4, 3))
    left = 0
    for image in cut:
        sheet[: image.shape[0], left : left + image.shape[1]] = image
        left += image.shape[1] + 4
    return style.picture(Image.fromarray((sheet.clip(0, 1) * 255).round().astype(np.uint8)))


BLOCKS = (counts, examples)
