"""Section "results": scores beside the degraded input and the paper, and before | after panels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.reporting import style as style
from pipeline.reporting.blocks import Block, Figure, Missing, Table, decibel, pretty
from pipeline.reporting.inputs import EVAL, Inputs

PAPER = {
    "natural_sr_x4": ("DIV2K-Val", 28.98, 0.8191),
    "natural_deraining": ("Rain100L", 39.56, 0.9865),
    "medical_sr_x4": ("IXI MRI", 27.88, 0.9053),
    "medical_denoising": ("AAPM-Mayo CT", 33.80, 0.9278),
    "remote_sensing_sr_x4": ("UCMerced", 28.29, 0.7917),
    "remote_sensing_cloud_removal": ("CUHK-CR1", 26.12, 0.7612),
}
"""[paper] MD-6T, the setting that the sample tasks imitate: data set, PSNR, SSIM."""


def gains(inputs: Inputs) -> Iterator[Block]:
    """Gain per task."""
    names, tasks, overall, variant = _scores(inputs)
    values = np.array([tasks[name]["psnr_gain"] for name in names])
    figure, axes = style.canvas(1.2 + 0.42 * len(names))
    bars = axes[0, 0].barh(
        [pretty(name) for name in names], values, color=[style.GOOD if gain > 0 else style.BAD for gain in values]
    )
    for bar, gain in zip(bars, values, strict=True):  # right of the axis always: left of it stand the names
        beside = (max(gain, 0), bar.get_y() + bar.get_height() / 2)
        axes[0, 0].annotate(f"{gain:+.2f}", beside, (4, 0), textcoords="offset points", va="center")
    axes[0, 0].axvline(0, color=style.INK, linewidth=1)
    axes[0, 0].margins(x=0.18)
    axes[0, 0].grid(axis="y", visible=False)
    axes[0, 0].set_xlabel("PSNR gain over the degraded input (dB)")
    better = int((values > 0).sum())
    yield Figure(
        "results-gain",
        "What restoration gains",
        f"{f'All {better}' if better == len(values) else f'{better} of {len(values)}'} tasks gain (metric variant "
        f"{variant}): from {decibel(values[0])} ({pretty(names[0])}) to {decibel(values[-1])} ({pretty(names[-1])}), "
        f"{decibel(overall['psnr_gain'])} on average.",
        style.png(figure),
        "Bars: PSNR gain over the degraded input for each task.",
    )


def table(inputs: Inputs) -> Iterator[Block]:
    """Every score, beside the paper's."""
    names, tasks, overall, variant = _scores(inputs)
    rows = [*(_row(name, tasks[name]) for name in reversed(names)), _row("mean over tasks", overall)]
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
        [row if known else row[:-1] for row in rows],
        last_is_total=True,
    )


def _scores(inputs: Inputs) -> tuple[list[str], dict, dict, str]:
    """Task names, least gain first; their scores; the mean's; the metric variant. All that is drawn is there."""
    metrics = inputs.metrics
    try:
        tasks, overall, variant = metrics["tasks"], metrics["overall"], metrics["variant"]
        names = sorted(tasks, key=lambda name: tasks[name]["psnr_gain"])
        for values in (overall, *tasks.values()):
            _row("", values)
    except (KeyError, TypeError) as error:
        raise Missing(f"{inputs.paths.metrics} has another form: {error!r}", EVAL) from None
    return names, tasks, overall, variant


def against_paper(inputs: Inputs) -> Iterator[Block]:
    """The paper's own test sets, where the evaluation found them."""
    found = {name: values for name, values in inputs.results["datasets"].items() if "paper" in values}
    if not found:
        return
    rows = [
        [
            f"{name} ({values['paper']['test_set']})",
            f"{values['psnr']:.2f} / {_ssim(values['ssim'])}",
            f"{values['paper']['psnr']:.2f} / {values['paper']['ssim']:.4f}",
            f"{values['paper']['psnr_difference']:+.2f}",
        ]
        for name, values in found.items()
    ]
    ahead = sum(values["paper"]["psnr_difference"] >= 0 for values in found.values())
    yield Table(
        "Against the paper",
        f"PSNR / SSIM of this run beside the paper's ({inputs.results['setting']}): level or ahead on {ahead} of "
        f"{len(found)} test sets.",
        ["test set", "this run", "paper", "difference (dB)"],
        rows,
    )


def spread(inputs: Inputs) -> Iterator[Block]:
    """The gain of every image, by task."""
    of_task = inputs.image_gains
    names = sorted(of_task, key=lambda name: np.mean(of_task[name]))
    figure, axes = style.canvas(1.2 + 0.45 * len(names))
    rng = np.random.default_rng(0)
    for place, name in enumerate(names):
        values = np.array(of_task[name])
        heights = place + rng.uniform(-0.22, 0.22, len(values))
        colors = np.where(values > 0, style.GOOD, style.BAD)
        axes[0, 0].scatter(values, heights, s=16, c=colors, alpha=0.6 if len(values) < 500 else 0.1, linewidths=0)
        axes[0, 0].plot([values.mean()] * 2, [place - 0.36, place + 0.36], color=style.INK, linewidth=2)
    axes[0, 0].axvline(0, color=style.INK, linewidth=1)
    axes[0, 0].set_yticks(range(len(names)), [pretty(name) for name in names])
    axes[0, 0].grid(axis="y", visible=False)
    axes[0, 0].set_xlabel("PSNR gain of one image (dB); line: mean")
    everyone = np.concatenate([of_task[name] for name in names])
    worse = int((everyone <= 0).sum())
    yield Figure(
        "results-spread",
        "Gain of every image",
        f"{len(everyone) - worse} of {len(everyone)} held-out images get better"
        + (
            f"; {worse} {'does' if worse == 1 else 'do'} not, the worst loses {-everyone.min():.2f} dB."
            if worse
            else ", none gets worse."
        ),
        style.png(figure),
        "Points: the PSNR gain of every image, by task, with the mean of the task.",
    )


def panels(inputs: Inputs) -> Iterator[Block]:
    """The sheets that the evaluation drew: the median image of every task, then best, median and worst by task."""
    folder = Path(inputs.paths.evaluation) / "panels"
    files = sorted(folder.glob("*.png"), key=lambda file: (file.stem != "overview", file.stem))
    if not files:
        raise Missing(f"{folder}: no pictures", EVAL)
    of_task = inputs.image_gains
    for file in files:
        values = of_task.get(file.stem)
        if file.stem == "overview":
            title, told = "Before and after", "The median image of every task, by gain: neither the best nor the worst."
        elif values:
            title = f"Best, median and worst: {pretty(file.stem)}"
            told = f"Of {len(values)} images the best gains {decibel(max(values))}, the worst {decibel(min(values))}."
        else:
            title, told = pretty(file.stem), "This task is not among the per-image results of the last evaluation."
        alt = f"{title}: degraded, restored and clean images beside each other."
        yield Figure(f"results-{file.stem}", title, told, file.read_bytes(), alt, wide=True)


def _row(name: str, values: dict) -> list[str]:
    paper = f"{PAPER[name][1]:.2f} / {PAPER[name][2]:.4f} ({PAPER[name][0]})" if name in PAPER else "–"
    numbers = [f"{values['psnr']:.2f}", f"{values['psnr_input']:.2f}", f"{values['psnr_gain']:+.2f}"]
    numbers += [_ssim(values["ssim"]), _ssim(values["ssim_input"]), str(values.get("n", ""))]
    return [pretty(name), *numbers, paper]


def _ssim(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


BLOCKS = (gains, spread, table, against_paper, panels)
