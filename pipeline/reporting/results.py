"""Section "Results": before and after, and by how much, from the evaluation's own files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reporting import style
from pipeline.reporting.blocks import Block, Figure, Missing, Table, listed, pretty
from pipeline.reporting.inputs import EVAL, Inputs


def before_after(inputs: Inputs) -> Iterator[Block]:
    """The evaluation's sheet with the median image of every task."""
    file = Path(inputs.paths.evaluation) / "panels" / "overview.png"
    if not file.is_file():
        raise Missing(f"{file}: not there (eval.panels draws it)", EVAL)
    told = "The median image of every task by its change in PSNR: neither the best nor the worst."
    yield Figure("Before and after", told, file.read_bytes(), "Input, restored and clean images.", wide=True)


def changes(inputs: Inputs) -> Iterator[Block]:
    """Change in PSNR of every data set with its interval, and every image as a point."""
    every = inputs.image_changes
    rows = {name: row for name, row in inputs.results["datasets"].items() if row["psnr_gain"] is not None}
    if not rows:
        return  # only clean inputs, which have nothing to win: the table shows them
    names = sorted(rows, key=lambda name: rows[name]["psnr_gain"])
    figure, axes = style.canvas(1.2 + 0.45 * len(names))
    rng = np.random.default_rng(0)
    for place, name in enumerate(names):
        colour = {"gain": style.BETTER, "loss": style.WORSE}.get(verdict(rows[name]), style.UNSURE)
        heights = place + rng.uniform(-0.25, 0.25, len(every[name]))
        axes[0, 0].scatter(every[name], heights, s=9, c=style.UNSURE, alpha=0.4, linewidths=0)
        axes[0, 0].plot(rows[name]["psnr_gain_ci95"], [place] * 2, color=colour, linewidth=3, solid_capstyle="round")
        axes[0, 0].plot(rows[name]["psnr_gain"], place, "o", color=colour, markersize=8)
    axes[0, 0].axvline(0, color=style.INK, linewidth=1)
    axes[0, 0].set_yticks(range(len(names)), [pretty(name) for name in names])
    axes[0, 0].set_xlabel("change in PSNR over the input (dB)")
    said = {kind: [pretty(name) for name in reversed(names) if verdict(rows[name]) == kind] for kind in VERDICTS}
    values = [value for name in names for value in every[name]]
    worse = sum(value < 0 for value in values)
    yield Figure(
        "How much restoring changes",
        " ".join(f"{text}: {listed(said[kind])}." for kind, text in VERDICTS.items() if said[kind])
        + f" {worse} of {len(values)} images get worse. Dot and bar: mean and its 95 % interval; small dots: images.",
        style.png(figure),
        "The change in PSNR of every data set with its interval.",
        "results-changes",
    )


def scores(inputs: Inputs) -> Iterator[Block]:
    """Every score, beside the paper's where it is for the same images."""
    results = inputs.results
    sets = results["datasets"]
    papers = any("paper" in row for row in sets.values())
    rows = [[pretty(name), *_cells(row), *([_paper(row)] if papers else [])] for name, row in sets.items()]
    if len(rows) > 1:
        rows.append(["mean over tasks", *_cells(results["overall"]), *([""] if papers else [])])
    yield Table(
        "Scores",
        f"PSNR (dB) / SSIM, metric variant {results['variant']}, mean over the images of a data set. A change is called "
        "gain or loss only where its 95 % interval excludes 0. " + " ".join(map(str, results.get("notes", []))),
        ["data set", "images", "input", "restored", "change [95 %]", "", *(["paper"] if papers else [])],
        rows,
        frozenset({0, 5}),
        last_is_total=len(rows) > 1,
    )


def by_task(inputs: Inputs) -> Iterator[Block]:
    """The evaluation's sheets with the best, the median and the worst image of a task, folded away."""
    for file in sorted((Path(inputs.paths.evaluation) / "panels").glob("*.png")):
        if file.stem != "overview":
            title = f"Best, median and worst image: {pretty(file.stem)}"
            alt = "Input, restored and clean images, and maps of the error."
            yield Figure(title, "", file.read_bytes(), alt, wide=True, folded=True)


VERDICTS = {
    "gain": "Better beyond doubt",
    "loss": "Worse beyond doubt",
    "not shown": "No change shown, the interval holds 0",
}


def verdict(row: dict[str, Any]) -> str:
    """A key of `VERDICTS`; one image has no interval, and a clean input nothing to win."""
    if row["psnr_gain"] is None:
        return "clean input"
    low, high = row["psnr_gain_ci95"]
    return "not shown" if row["n"] < 2 or low <= 0 <= high else "gain" if low > 0 else "loss"


def change(row: dict[str, Any]) -> str:
    """`+1.35 dB [+1.24, +1.46]`."""
    if row["psnr_gain"] is None:
        return "–"
    low, high = row["psnr_gain_ci95"]
    return f"{row['psnr_gain']:+.2f} dB [{low:+.2f}, {high:+.2f}]"


def _cells(row: dict[str, Any]) -> list[str]:
    told = [_pair(row[f"psnr{of}"], row[f"ssim{of}"]) for of in ("_input", "")]
    return [str(row["n"]), *told, change(row), verdict(row)]


def _paper(row: dict[str, Any]) -> str:
    paper = row.get("paper")
    return f"{_pair(paper['psnr'], paper['ssim'])} ({paper['psnr_difference']:+.2f})" if paper else ""


def _pair(psnr: float, ssim: float | None) -> str:
    return f"{psnr:.2f} / " + ("–" if ssim is None else f"{ssim:.4f}")


BLOCKS = (before_after, changes, scores, by_task)
