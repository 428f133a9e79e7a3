"""Pictures to judge a result by eye: before | after | gt | error before | error after, with the scores beneath.

Of each task the best, the median and the worst image, by gain over the input.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from student.evaluation.metrics import IDENTICAL_DB
from student.evaluation.tables import grouped

CELL = 232
"""Side of the box that an image is fitted into."""
GAP, MARGIN, LINE = 10, 16, 19
INK, SOFT, PAPER, GOOD, BAD = "#1c2330", "#6a7383", "#ffffff", "#0b7a4b", "#b3261e"
COLUMNS = ("input", "restored", "ground truth", "error of input", "error of restored")
HEAT = np.array(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ]
)
"""Anchors of an even-lightness scale from black (no error) to yellow."""


@dataclass(frozen=True)
class Row:
    """One image of a sheet: images `[3, H, W]` float in [0, 1] and its scores."""

    title: str
    lq: np.ndarray
    restored: np.ndarray
    gt: np.ndarray
    psnr_input: float
    psnr: float
    ssim_input: float | None
    ssim: float | None


def draw_sheet(heading: str, rows: list[Row], file: Path, errors: bool = True, across: int = 1) -> None:
    """Write a PNG with one band an image, `across` bands side by side; `errors` adds two error maps to each.

    Both error maps of a row share one scale: mean absolute error over the channels, from 0 to the 99.5th percentile
    of the larger one, printed beneath.
    """
    columns = COLUMNS if errors else COLUMNS[:3]
    bands = [_Band(row, errors) for row in rows]
    band_width = len(columns) * CELL + (len(columns) - 1) * GAP
    lines = [bands[start : start + across] for start in range(0, len(bands), across)]
    width = MARGIN + min(across, len(bands)) * (band_width + MARGIN)
    height = MARGIN + 2 * LINE + sum(max(band.height for band in line) for line in lines) + MARGIN // 2
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), heading, INK, font=_font(16))
    top = MARGIN + 2 * LINE - 8
    for line in lines:
        for i, band in enumerate(line):
            band.draw(sheet, pen, MARGIN + i * (band_width + MARGIN), top, columns)
        top += max(band.height for band in line)
    sheet.save(file, optimize=True)


class _Band:
    """One row of a sheet, scaled and measured."""

    def __init__(self, row: Row, errors: bool):
        self.row = row
        images = [row.lq, row.restored, row.gt]
        height, width = row.gt.shape[1:]
        self.scale = CELL / max(height, width)
        self.cells = [self._fit(_bytes(image)) for image in images]
        self.peak = 0.0
        if errors:
            maps = [np.abs(image.clip(0, 1) - row.gt).mean(0) for image in images[:2]]
            self.peak = max(float(np.quantile(maps, 0.995)), 1 / 255)
            self.cells += [self._fit(_heat(error / self.peak)) for error in maps]
        self.height = LINE + self.cells[0].height + 2 * LINE + GAP

    def _fit(self, pixels: np.ndarray) -> Image.Image:
        image = Image.fromarray(pixels)
        size = tuple(max(1, round(side * self.scale)) for side in image.size)
        times = math.ceil(self.scale)  # small images: square pixels first, so that the page blurs nothing
        enlarged = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
        return enlarged.resize(size, Image.Resampling.LANCZOS)

    def draw(self, sheet: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, columns: tuple[str, ...]) -> None:
        row = self.row
        gain = row.psnr - row.psnr_input
        pen.text((left, top), row.title, INK, font=_font(13))
        if np.isfinite(gain):
            at = left + pen.textlength(row.title + "   ", font=_font(13))
            pen.text(
                (at, top), f"{gain:+.2f} dB", GOOD if gain > 0.005 else BAD if gain < -0.005 else SOFT, font=_font(13)
            )
        notes = [_scores(row.psnr_input, row.ssim_input), _scores(row.psnr, row.ssim), ""]
        notes += [f"black: 0, yellow: {self.peak * 255:.0f} of 255"] * 2
        below = top + LINE + self.cells[0].height
        for i, (cell, label) in enumerate(zip(self.cells, columns, strict=True)):
            at = left + i * (CELL + GAP)
            sheet.paste(cell, (at, top + LINE))
            pen.text((at, below + 3), label, INK, font=_font(12))
            pen.text((at, below + LINE), notes[i], SOFT, font=_font(12))


def _scores(psnr: float, ssim: float | None) -> str:
    return f"{psnr:.2f} dB" + ("" if ssim is None else f" / {ssim:.4f}")


def _bytes(image: np.ndarray) -> np.ndarray:
    return np.round(image.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)


def _heat(values: np.ndarray) -> np.ndarray:
    places = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(values.clip(0, 1), places, HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def best_median_worst(records: list[dict]) -> dict[str, dict]:
    """Label → record; with fewer than three images, as many as there are."""
    ranked = sorted(records, key=lambda record: -_gain(record))
    places = {"best": 0, "median": len(ranked) // 2, "worst": len(ranked) - 1}
    if len(ranked) < 3:
        places = {"best": 0, "worst": 1} if len(ranked) == 2 else {"only": 0}
    return {label: ranked[place] for label, place in places.items()}


def write_panels(
    folder: Path,
    records: list[dict],
    load: Callable[[int], tuple[np.ndarray, np.ndarray]],
    restore: Callable[[np.ndarray], np.ndarray],
    variant: str,
) -> None:
    """One sheet a task, TASK.png, and overview.png with the median image of every task: not the best, so that the
    picture people see first promises what they will get."""
    folder.mkdir(parents=True, exist_ok=True)
    medians = []
    for task, group in grouped(records, "task").items():
        rows = []
        for label, record in best_median_worst(group).items():
            row = _row(record, load, restore, f"{label} of {len(group)}: {_short(record['image'])}")
            rows.append(row)
            if label in ("median", "only"):
                medians.append(replace(row, title=task))
        draw_sheet(f"{task}   (PSNR / SSIM, variant {variant})", rows, folder / f"{file_name(task)}.png")
        if len(group) == 2:
            medians.append(replace(rows[0], title=task))
    heading = f"The median image of every task   (PSNR / SSIM, variant {variant})"
    draw_sheet(heading, medians, folder / "overview.png", errors=False, across=2)


def file_name(task: str) -> str:
    """A task's name as part of a file's: an index may come from a stranger, and its tasks hold slashes."""
    return re.sub(r"[^\w.-]+", "_", task).lstrip(".") or "task"


def _row(record: dict, load: Callable, restore: Callable, title: str) -> Row:
    lq, gt = load(record["row"])
    return Row(title, lq, restore(lq), gt, *(record[key] for key in ("psnr_input", "psnr", "ssim_input", "ssim")))


def _gain(record: dict) -> float:
    return min(record["psnr"], IDENTICAL_DB) - min(record["psnr_input"], IDENTICAL_DB)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
