"""Evaluations side by side: what every run gains, and how it differs from the first, paired by image."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from student.evaluation.metrics import IDENTICAL_DB, bootstrap_interval

Interval = tuple[float, float]
Points = list[tuple[float, float]]
"""(step, value) of a curve."""


class CompareError(ValueError):
    """The runs cannot be compared; one line with the remedy."""


class Image(NamedTuple):
    """PSNR in dB, and its gain over the input; None for a clean input, which can only be kept."""

    psnr: float
    gain: float | None


class Run(NamedTuple):
    """What one evaluation measured: data set → image → scores, and what kind of numbers these are."""

    folder: Path
    scores: dict[str, dict[str, Image]]
    task_of: dict[str, str]
    kind: str


class Cell(NamedTuple):
    """One run on some images that the first has measured too: means in dB, with their bootstrap 95 % intervals."""

    images: int
    psnr: float
    gain: float | None
    gain_interval: Interval | None
    change: float
    """Of PSNR, against the first run."""
    change_interval: Interval


def read(folder: Path) -> Run:
    """The evaluation that `student.eval` wrote into `folder`; raises `CompareError`."""
    scores: dict[str, dict[str, Image]] = defaultdict(dict)
    tasks, kinds = {}, set()
    try:
        with open(folder / "per_image.csv", newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                gain = float(row["psnr_gain"]) if row["psnr_gain"] else None
                scores[row["dataset"]][row["image"]] = Image(min(float(row["psnr"]), IDENTICAL_DB), gain)
                tasks[row["dataset"]] = row["task"]
                kinds.add(f"variant `{row['variant']}`, border {row['crop_border']}")
    except (OSError, KeyError, ValueError) as error:
        raise CompareError(f"{folder}: no evaluation there ({error}); python -m student.eval --out {folder}") from None
    if len(kinds) != 1:
        raise CompareError(f"{folder}: holds no image, or numbers of several kinds; evaluate it again")
    return Run(folder, scores, tasks, kinds.pop())


def read_all(folders: Sequence[Path]) -> list[Run]:
    """Several that can be compared; raises `CompareError`."""
    runs = [read(folder) for folder in folders]
    if len({run.kind for run in runs}) > 1:
        told = "; ".join(f"{run.folder}: {run.kind}" for run in runs)
        raise CompareError(f"numbers of different kinds do not compare: {told}")
    return runs


def tasks(first: Run) -> dict[str, list[str]]:
    """Task → its data sets, in sorted order."""
    names = sorted(first.scores)
    return {task: [n for n in names if first.task_of[n] == task] for task in sorted(set(first.task_of.values()))}


def cell(first: Run, run: Run, groups: Sequence[Sequence[str]]) -> Cell | None:
    """`run` over the images of `groups` of data sets that both runs measured: the unweighted mean of the groups' means.
    None where they share no image."""
    psnr, gains, changes = [], [], []
    for names in groups:
        here = {name: (first.scores[name], run.scores.get(name, {})) for name in names}
        both = [(one[i], other[i]) for one, other in here.values() for i in sorted(one.keys() & other.keys())]
        if both:
            psnr.append([other.psnr for _, other in both])
            changes.append([other.psnr - one.psnr for one, other in both])
            if gained := [other.gain for _, other in both if other.gain is not None]:
                gains.append(gained)
    if not psnr:
        return None
    return Cell(
        sum(map(len, psnr)),
        _mean(psnr),
        _mean(gains) if gains else None,
        bootstrap_interval(*gains) if gains else None,
        _mean(changes),
        bootstrap_interval(*changes),
    )


def _mean(groups: list[list[float]]) -> float:
    return float(np.mean([np.mean(group) for group in groups]))


def table(runs: Sequence[Run]) -> str:
    """Markdown: a line a data set and the mean over tasks: the mean of each run, and its difference to the first."""
    first, names = runs[0], [str(run.folder) for run in runs]
    lines = [
        f"PSNR (dB), {first.kind}, mean over the images; differences to {first.folder} are paired by image, in "
        "brackets their bootstrap 95 % interval.",
        "",
        f"| data set | images | {' | '.join(names)} |",
        f"|---|--:|{'--:|' * len(runs)}",
    ]
    wanted = [(name, [[name]]) for name in sorted(first.scores)] + [("**mean over tasks**", [*tasks(first).values()])]
    for title, groups in wanted:
        own = cell(first, first, groups)
        assert own is not None, "a run shares its images with itself"
        cells = [_written(cell(first, run, groups), own.images) for run in runs[1:]]
        lines.append(f"| {title} | {own.images} | {own.psnr:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _written(found: Cell | None, images: int) -> str:
    if found is None:
        return "–"
    of = f" (of {found.images})" if found.images < images else ""
    low, high = found.change_interval
    return f"{found.psnr:.2f}{of}, {found.change:+.2f} [{low:+.2f}, {high:+.2f}]"


def curves(run: Run) -> dict[str, Points]:
    """What the evaluated student's training logged, as `student.eval` keeps it beside the scores: its loss under "",
    and the gain of each data set in validation; empty where there is none, as of a published student."""
    folder = run.folder / "curves"
    wanted = {"": (folder / "train.tsv", "loss")} if (folder / "train.tsv").is_file() else {}
    wanted |= {file.stem: (file, "psnr_gain") for file in sorted(folder.glob("val/*.tsv"))}
    found = {}
    for name, (file, column) in wanted.items():
        try:
            with open(file, newline="", encoding="utf-8") as lines:
                rows = [row for row in csv.DictReader(lines, delimiter="\t") if row[column]]
                points = [(float(row["step"]), float(row[column])) for row in rows]
        except (OSError, KeyError, ValueError) as error:
            raise CompareError(f"{file}: not a curve ({error}); evaluate the run again") from None
        if points := [point for point in points if np.isfinite(point[1])]:
            found[name] = points
    return found
