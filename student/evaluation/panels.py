"""Which images `student.eval` draws: the best, the median and the worst of each task, by gain over the input."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from student.evaluation.contact_sheet import Row, draw_sheet
from student.evaluation.metrics import IDENTICAL_DB
from student.evaluation.tables import grouped


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
                medians.append(_row_titled(row, task))
        draw_sheet(f"{task}   (PSNR / SSIM, variant {variant})", rows, folder / f"{file_name(task)}.png")
        if len(group) == 2:
            medians.append(_row_titled(rows[0], task))
    heading = f"The median image of every task   (PSNR / SSIM, variant {variant})"
    draw_sheet(heading, medians, folder / "overview.png", errors=False, across=2)


def file_name(task: str) -> str:
    """A task's name as part of a file's: an index may come from a stranger, and its tasks hold slashes."""
    return re.sub(r"[^\w.-]+", "_", task).lstrip(".") or "task"


def _row(record: dict, load: Callable, restore: Callable, title: str) -> Row:
    lq, gt = load(record["row"])
    scores: dict[str, Any] = {key: record[key] for key in ("psnr_input", "psnr", "ssim_input", "ssim")}
    return Row(title, lq, restore(lq), gt, **scores)


def _row_titled(row: Row, title: str) -> Row:
    return Row(title, row.lq, row.restored, row.gt, row.psnr_input, row.psnr, row.ssim_input, row.ssim)


def _gain(record: dict) -> float:
    return min(record["psnr"], IDENTICAL_DB) - min(record["psnr_input"], IDENTICAL_DB)


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
