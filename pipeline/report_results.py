"""Section "results": scores beside the degraded input and the paper, panels, and the ablation."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline import report_style as style
from pipeline.report_blocks import Block, Figure, Missing, Table, decibel, pretty
from pipeline.report_inputs import EVAL, Inputs

PAPER = {
    "natural_sr_x4": ("DIV2K-Val", 28.98, 0.8191),
    "natural_deraining": ("Rain100L", 39.56, 0.9865),
    "medical_sr_x4": ("IXI MRI", 27.88, 0.9053),
    "medical_denoising": ("AAPM-Mayo CT", 33.80, 0.9278),
    "remote_sensing_sr_x4": ("UCMerced", 28.29, 0.7917),
    "remote_sensing_cloud_removal": ("CUHK-CR1", 26.12, 0.7612),
}
"""[paper] MD-6T, the setting that the sample tasks imitate: data set, PSNR, SSIM."""


def scores(inputs: Inputs) -> Iterator[Block]:
    """Gain per task, and the table with the paper's numbers."""
    metrics = inputs.metrics
    try:
        tasks, overall, variant = metrics["tasks"], metrics["overall"], metrics["variant"]
        names = sorted(tasks, key=lambda name: tasks[name]["psnr_gain"])
        gains = np.array([tasks[name]["psnr_gain"] for name in names])
        rows = [_row(name, tasks[name]) for name in reversed(names)]
        total = _row("mean over tasks", overall)
    except (KeyError, TypeError) as error:
        raise Missing(f"{inputs.paths.metrics} has another form: {error!r}", EVAL) from None
    figure, axes = style.canvas(1.2 + 0.42 * len(names))
    bars = axes[0, 0].barh(
        [pretty(name) for name in names], gains, color=[style.GOOD if gain > 0 else style.BAD for gain in gains]
    )
    axes[0, 0].bar_label(bars, [f"{gain:+.2f}" for gain in gains], padding=4)
    axes[0, 0].axvline(0, color=style.INK, linewidth=1)
    axes[0, 0].margins(x=0.18)
    axes[0, 0].grid(axis="y", visible=False)
    axes[0, 0].set_xlabel("PSNR gain over the degraded input (dB)")
    better = int((gains > 0).sum())
    yield Figure(
        "results-gain",
        "What restoration gains",
        f"{f'All {better}' if better == len(gains) else f'{better} of {len(gains)}'} tasks gain (metric variant "
        f"{variant}): from {decibel(gains[0])} ({pretty(names[0])}) to {decibel(gains[-1])} ({pretty(names[-1])}), "
        f"{decibel(overall['psnr_gain'])} on average.",
        style.png(figure),
        "Bars: PSNR gain over the degraded input for each task.",
    )
    known = any(name in PAPER for name in tasks)
    yield Table(
        "Scores by task",
        f"Metric variant {variant}; a task's score is the mean over its images. "
        + (
            "The paper's column is its own model on its own data sets (MD-6T, 53 M parameters, a million steps): a "
            "yardstick, not a comparison."
            if known
            else ""
        ),
        ["task", "PSNR", "input", "gain", "SSIM", "input", "images", *(["paper (its data)"] if known else [])],
        [row if known else row[:-1] for row in (*rows, total)],
        last_is_total=True,
    )


def _row(name: str, values: dict) -> list[str]:
    paper = f"{PAPER[name][1]:.2f} / {PAPER[name][2]:.4f} ({PAPER[name][0]})" if name in PAPER else "–"
    numbers = [f"{values['psnr']:.2f}", f"{values['psnr_input']:.2f}", f"{values['psnr_gain']:+.2f}"]
    numbers += [f"{values['ssim']:.4f}", f"{values['ssim_input']:.4f}", str(values.get("n", ""))]
    return [pretty(name), *numbers, paper]


def panels(inputs: Inputs) -> Iterator[Block]:
    """Before | after | gt | error panels that the evaluation drew."""
    folder = Path(inputs.paths.evaluation)
    files = sorted(folder.rglob("*.png"))
    if not files:
        raise Missing(f"{folder}: no panels", EVAL)
    for file in files:
        yield Figure(
            f"results-panel-{file.stem}",
            pretty(file.stem),
            "",
            file.read_bytes(),
            f"Panel {file.stem}.",
            wide=True,
        )


BLOCKS = (scores, panels)
