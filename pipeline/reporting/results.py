"""Section "Results": before and after, and by how much, from the evaluation's own files."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.reporting import style
from pipeline.reporting.blocks import Block, Figure, Missing, Table, listed, pretty
from pipeline.reporting.inputs import EVAL, Inputs

SAID = {"gain": "Gain", "loss": "Loss", "not shown": "No change shown (the interval holds 0, or it is one image)"}


def panels(inputs: Inputs) -> Iterator[Block]:
    """The evaluation's sheets: the median image of every task; best, median and worst of each task are folded away."""
    folder = Path(inputs.paths.evaluation) / "panels"
    if not (folder / "overview.png").is_file():
        raise Missing(f"{folder / 'overview.png'}: not there (eval.panels draws it)", EVAL)
    yield Figure("Before and after", "", (folder / "overview.png").read_bytes(), wide=True)
    for file in sorted(folder.glob("*.png")):
        if file.stem != "overview":
            yield Figure(f"Best, median and worst image: {pretty(file.stem)}", "", file.read_bytes(), folded=True)


def changes(inputs: Inputs) -> Iterator[Block]:
    """Change in PSNR of every data set with its interval."""
    rows = {name: row for name, row in inputs.results["datasets"].items() if row["psnr_gain"] is not None}
    names = sorted(rows, key=lambda name: rows[name]["psnr_gain"])
    if not names:
        return  # only clean inputs, which have nothing to win: the table shows them
    figure, axes = style.canvas(1.2 + 0.45 * len(names))
    for place, name in enumerate(names):
        colour = {"gain": style.BETTER, "loss": style.WORSE}.get(verdict(rows[name]), style.UNSURE)
        axes[0, 0].plot(rows[name]["psnr_gain_ci95"], [place] * 2, color=colour, linewidth=3, solid_capstyle="round")
        axes[0, 0].plot(rows[name]["psnr_gain"], place, "o", color=colour, markersize=8)
    axes[0, 0].axvline(0, color=style.INK, linewidth=1)
    axes[0, 0].set_yticks(range(len(names)), [pretty(name) for name in names])
    axes[0, 0].set_xlabel("change in PSNR over the input (dB)")
    found = {kind: [pretty(name) for name in reversed(names) if verdict(rows[name]) == kind] for kind in SAID}
    told = [f"{SAID[kind]}: {listed(found[kind])}." for kind in SAID if found[kind]]
    told.append("Dot: mean over the images. Bar: its 95 % interval, from drawing other images of the same kind.")
    yield Figure("How much restoring changes", " ".join(told), style.png(figure), "results-changes")


def scores(inputs: Inputs) -> Iterator[Block]:
    """Every score, beside the paper's where it is for the same images."""
    results = inputs.results
    sets = results["datasets"]
    papers = any("paper" in row for row in sets.values())
    rows = [[pretty(name), *_cells(row, papers)] for name, row in sets.items()]
    if len(rows) > 1:
        rows.append(["mean over tasks", *_cells(results["overall"] | {"paper": None}, papers)])
    columns = ["data set", "images", "input", "restored", "change [95 %]", "", "worst image"]
    yield Table(
        "Scores",
        f"PSNR (dB) / SSIM, metric variant {results['variant']}, mean over the images of a data set. A change is "
        "a gain or a loss only where its interval excludes 0. " + " ".join(map(str, results.get("notes", []))),
        columns + ["paper (difference)"] * papers,
        rows,
        (0, 5),
    )


def verdict(row: dict[str, Any]) -> str:
    """What may be said of a change; one image has no interval, and a clean input nothing to win."""
    if row["psnr_gain"] is None:
        return "clean input"
    low, high = row["psnr_gain_ci95"]
    return "not shown" if low <= 0 <= high or low == high else "gain" if low > 0 else "loss"


def change(row: dict[str, Any]) -> str:
    """`+1.35 dB [+1.24, +1.46]`."""
    if row["psnr_gain"] is None:
        return "–"
    low, high = map(_signed, row["psnr_gain_ci95"])
    return f"{_signed(row['psnr_gain'])} dB [{low}, {high}]"


def facts(inputs: Inputs) -> list[tuple[str, str]]:
    """The run in a few numbers; those that are not there are left out: their section says what is missing."""
    found = []
    with suppress(Missing):
        overall = inputs.results["overall"]
        found.append((f"change in PSNR, mean over tasks: {verdict(overall)}", change(overall)))
    with suppress(Missing):
        found += [("pairs", f"{inputs.pairs.n:,}"), ("clean images", f"{inputs.pairs.images:,}")]
    with suppress(Missing):
        found.append(("training steps", f"{inputs.log[-1]['step']:,}"))
    return found


def _cells(row: dict[str, Any], papers: bool) -> list[str]:
    before, after = (_pair(row[f"psnr{of}"], row[f"ssim{of}"]) for of in ("_input", ""))
    least, paper = row.get("psnr_gain_least"), row.get("paper")
    cells = [str(row["n"]), before, after, change(row), verdict(row), "–" if least is None else _signed(least)]
    beside = f"{_pair(paper['psnr'], paper['ssim'])} ({paper['psnr_difference']:+.2f})" if paper else ""
    return cells + [beside] * papers


def _signed(decibel: float) -> str:
    return f"{decibel:+.2f}" if abs(decibel) >= 0.005 or not decibel else f"{decibel:+.1g}"  # no +0.00 that excludes 0


def _pair(psnr: float, ssim: float | None) -> str:
    return f"{psnr:.2f} / " + ("–" if ssim is None else f"{ssim:.4f}")


BLOCKS = (panels, changes, scores)
