"""What a run shows: log.jsonl, curves that `dvc plots` reads, trackers, and words for the terminal."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from student.files import write_file
from student.training.losses import TERMS

Row = dict[str, Any]
"""{"step": ..., ...}; "loss" and its terms, or "val" (dataset → scores), or "usage"."""


class RunLog:
    """log.jsonl of one run, and everything that is made from its rows. Only the main process has one.

    Every checkpoint has a copy: a start goes on from that of its checkpoint, `saved`, and what an interrupted one
    logged after it is computed, and logged, again.
    """

    def __init__(self, out: Path, accelerator: Accelerator, saved: Path | None, panels: Path):
        self.out, self.accelerator, self.panels = out, accelerator, panels
        self.file = out / "log.jsonl"
        write_file(self.file, (saved / self.file.name).read_bytes() if saved else "")
        self.write_curves()

    def rows(self) -> list[Row]:
        return [json.loads(line) for line in self.file.read_text(encoding="utf-8").splitlines()]

    def write(self, row: Row) -> None:
        """Append one row and send its numbers to the trackers."""
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.accelerator.trackers:
            numbers = dict(_numbers({key: value for key, value in row.items() if key not in ("step", "usage")}))
            self.accelerator.log({_tag(name): value for name, value in numbers.items()}, step=row["step"])

    def images(self, step: int, panels: dict[str, np.ndarray]) -> None:
        """Panels, dataset → uint8 [H, W, 3], as one PNG each and to the trackers that take images."""
        self.panels.mkdir(parents=True, exist_ok=True)
        for name, panel in panels.items():
            Image.fromarray(panel).save(self.panels / f"step-{step:08d}-{name}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(
                    {f"panels/{name}": panel[None] for name, panel in panels.items()}, step=step, **layout
                )

    def save(self, folder: Path) -> None:
        """Into a checkpoint, and into the curves."""
        shutil.copy(self.file, folder)
        self.write_curves()

    def newest_scores(self) -> dict[str, dict[str, float]]:
        """The last validation, dataset → scores; empty before the first."""
        return next((row["val"] for row in reversed(self.rows()) if "val" in row), {})

    def write_curves(self) -> None:
        """curves/train.tsv (a column a loss) and curves/val/DATASET.tsv for `dvc plots`, curves/usage.json with the
        newest use of the prompts by task and domain, metrics.json with the newest values for `dvc exp show`."""
        rows = self.rows()
        train = [row for row in rows if "loss" in row]
        val = [row for row in rows if "val" in row]
        columns = ["step", "loss", *(f"loss_{term}" for term in TERMS), "lr", "grad_norm", "images_per_second"]
        curves = {"train": (columns, train)}
        for name in {name: None for row in val for name in row["val"]}:
            scores = [{"step": row["step"], **row["val"][name]} for row in val if name in row["val"]]
            curves[f"val/{name}"] = (["step", "psnr", "psnr_gain"], scores)
        shutil.rmtree(self.out / "curves", ignore_errors=True)  # of another run, with other data sets
        for name, (keys, part) in curves.items():
            cells = [keys, *([str("" if row[key] is None else row[key]) for key in keys] for row in part)]
            write_file(self.out / "curves" / f"{name}.tsv", "".join("\t".join(line) + "\n" for line in cells))
        if usage := next((row["usage"] for row in reversed(rows) if "usage" in row), None):
            write_file(
                self.out / "curves" / "usage.json", json.dumps(usage) + "\n"
            )  # for student/restoration/explain.py
        newest = {key: train[-1][key] for key in columns if key != "images_per_second"} if train else {}
        if val:
            newest["val"] = val[-1]["val"]
        write_file(self.out / "metrics.json", json.dumps(newest, indent=1))


def words(row: Row) -> str:
    """A row of the log for people who watch."""
    terms = " ".join(f"{term} {row[f'loss_{term}']:.3f}" for term in TERMS if row[f"loss_{term}"] is not None)
    memory = f" · {row['gpu_gib']:.1f} GiB" if "gpu_gib" in row else ""
    rate = f"{row['images_per_second']:.1f} img/s · data {row['data_wait_fraction']:.0%}"
    return f"loss {row['loss']:.4f} · {terms} · {rate}{memory}"


def _tag(name: str) -> str:
    """A number's name for the trackers, which show what is alike before the first slash together."""
    if name == "loss" or name.startswith("loss_"):
        return f"loss/{name[5:] or 'total'}"
    return name if "/" in name else f"run/{name}"


def _numbers(node: Row, prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", value
