"""Pictures to judge a result by eye: before | after | gt | error before | error after, with the scores beneath.

Of each task the best, the median and the worst image, by gain over the input.
"""

import math
import re
from collections.abc import Callable
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


def draw_sheet(
    heading: str, bands: list[tuple[str, "Band"]], file: Path, columns: tuple[str, ...] = COLUMNS, across: int = 1
) -> None:
    """Write a PNG with one band an image, each with its title, `across` of them side by side."""
    band_width = len(columns) * (CELL + GAP) - GAP
    lines = [bands[start : start + across] for start in range(0, len(bands), across)]
    heights = [max(band.height for _, band in line) for line in lines]
    width = MARGIN + min(across, len(bands)) * (band_width + MARGIN)
    sheet = Image.new("RGB", (width, MARGIN + 2 * LINE + sum(heights) + MARGIN // 2), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN - 4), heading, INK, font=_font(16))
    top = MARGIN + 2 * LINE - 8
    for line, height in zip(lines, heights, strict=True):
        for i, (title, band) in enumerate(line):
            band.draw(sheet, pen, MARGIN + i * (band_width + MARGIN), top, title, columns)
        top += height
    sheet.save(file, optimize=True)


class Band:
    """One image of a sheet, scaled and measured, so that its pixels need not be kept: images `[3, H, W]` in [0, 1], and
    the record with its scores.

    Both error maps share one scale, printed beneath: mean absolute error over the channels, from 0 to the 99.5th
    percentile of the larger one.
    """

    def __init__(self, record: dict, lq: np.ndarray, restored: np.ndarray, gt: np.ndarray):
        self.record, self.scale = record, CELL / max(gt.shape[1:])
        maps = [np.abs(image.clip(0, 1) - gt).mean(0) for image in (lq, restored)]
        self.peak = max(float(np.quantile(maps, 0.995)), 1 / 255)
        pixels = [_bytes(image) for image in (lq, restored, gt)] + [_heat(error / self.peak) for error in maps]
        self.cells = [self._fit(image) for image in pixels]
        self.height = LINE + self.cells[0].height + 2 * LINE + GAP

    def _fit(self, pixels: np.ndarray) -> Image.Image:
        image = Image.fromarray(pixels)
        size = tuple(max(1, round(side * self.scale)) for side in image.size)
        times = math.ceil(self.scale)  # small images: square pixels first, so that the page blurs nothing
        enlarged = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
        return enlarged.resize(size, Image.Resampling.LANCZOS)

    def draw(
        self, sheet: Image.Image, pen: ImageDraw.ImageDraw, left: int, top: int, title: str, columns: tuple[str, ...]
    ) -> None:
        record = self.record
        gain = record["psnr"] - record["psnr_input"]
        pen.text((left, top), title, INK, font=_font(13))
        if np.isfinite(gain):
            at, colour = left + pen.textlength(title + "   ", font=_font(13)), SOFT
            if abs(gain) > 0.005:
                colour = GOOD if gain > 0 else BAD
            pen.text((at, top), f"{gain:+.2f} dB", colour, font=_font(13))
        notes = [_scores(record["psnr_input"], record["ssim_input"]), _scores(record["psnr"], record["ssim"]), ""]
        notes += [f"black: 0, yellow: {self.peak * 255:.0f} of 255"] * 2
        below = top + LINE + self.cells[0].height
        for i, label in enumerate(columns):
            at = left + i * (CELL + GAP)
            sheet.paste(self.cells[i], (at, top + LINE))
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
        bands = []
        for label, record in best_median_worst(group).items():
            lq, gt = load(record["row"])
            bands.append((f"{label} of {len(group)}: {_short(record['image'])}", Band(record, lq, restore(lq), gt)))
        draw_sheet(f"{task}   (PSNR / SSIM, variant {variant})", bands, folder / f"{file_name(task)}.png")
        medians.append((task, bands[len(bands) // 3][1]))  # of two the best
    heading = f"The median image of every task   (PSNR / SSIM, variant {variant})"
    draw_sheet(heading, medians, folder / "overview.png", COLUMNS[:3], across=2)


def file_name(task: str) -> str:
    """A task's name as part of a file's: an index may come from a stranger, and its tasks hold slashes."""
    return re.sub(r"[^\w.-]+", "_", task).lstrip(".") or "task"


def _gain(record: dict) -> float:
    return min(record["psnr"], IDENTICAL_DB) - min(record["psnr_input"], IDENTICAL_DB)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
