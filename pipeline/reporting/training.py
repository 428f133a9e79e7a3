"""Section "training": losses, validation and speed over the steps."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.reporting import style as style
from pipeline.reporting.blocks import Block, Figure, Missing, decibel, listed, pretty
from pipeline.reporting.inputs import TRAIN, Inputs

TERMS = ("pixel", "fft", "align", "diversity", "balance", "contrastive")
MEANING = {
    "pixel": "pixel: |restored − gt|",
    "fft": "fft: the same in frequencies",
    "align": "align: 1 − cos(prompt, prior)",
    "diversity": "diversity: prompts too alike",
    "balance": "balance: uneven use",
    "contrastive": "contrastive: mixed labels",
}


def losses(inputs: Inputs) -> Iterator[Block]:
    """Every loss that was on, un-weighted."""
    rows = _rows(inputs, "loss")
    on = [term for term in TERMS if any(row.get(f"loss_{term}") is not None for row in rows)]
    panels = [("loss", "total (weighted)"), *((f"loss_{term}", MEANING[term]) for term in on)]
    height = -(-len(panels) // 2)
    figure, axes = style.canvas(2.1 * height, height, 2, sharex=True)
    changes = {}
    for place, (key, title) in zip(axes.flat, panels, strict=False):
        steps, values = _series(rows, key)
        place.plot(steps, values, color=style.GOOD, alpha=0.3, linewidth=1)
        smooth = _smooth(values)
        place.plot(steps, smooth, color=style.GOOD, linewidth=2)
        place.set_title(title, fontsize=10, loc="left")
        changes[key] = (smooth[0], smooth[-1])
    for place in list(axes.flat)[len(panels) :]:
        place.set_visible(False)
    for place in axes[-1]:
        place.set_xlabel("step")
    first, last = changes["loss"]
    told = [
        f"{key.removeprefix('loss_')} {a:.3g} → {b:.3g}"
        for key, (a, b) in changes.items()
        if key in ("loss_pixel", "loss_align", "loss_contrastive")
    ]
    yield Figure(
        "training-losses",
        "Losses",
        f"From step {rows[0]['step']} to {rows[-1]['step']} the total went {'down' if last < first else 'up'} from "
        f"{first:.3g} to {last:.3g}" + (f" ({listed(told)})." if told else "."),
        style.png(figure),
        "Curves of every loss over the steps; faint: as logged, strong: smoothed.",
    )


def validation(inputs: Inputs) -> Iterator[Block]:
    """PSNR gain over the degraded input, per data set."""
    rows = _rows(inputs, "val")
    names = sorted({name for row in rows for name in row["val"]})
    gain = all("psnr_gain" in score for row in rows for score in row["val"].values())
    key = "psnr_gain" if gain else "psnr"
    figure, axes = style.canvas(3.4 + 0.24 * len(names))
    final = {}
    for name, color, marker in zip(names, style.colors(names).values(), style.markers(names).values(), strict=True):
        points = [(row["step"], row["val"][name][key]) for row in rows if name in row["val"]]
        axes[0, 0].plot(*zip(*points, strict=True), color=color, marker=marker, markersize=5, label=pretty(name))
        final[name] = points[-1][1]
    if gain:
        axes[0, 0].axhline(0, color=style.INK, linewidth=1)
    axes[0, 0].set(xlabel="step", ylabel="PSNR gain over the input (dB)" if gain else "PSNR (dB)")
    figure.legend(loc="outside lower center", ncols=1 if len(names) < 4 else 2, fontsize=9)
    best, worst = max(final, key=final.get), min(final, key=final.get)
    told = decibel if gain else "{:.2f} dB".format
    yield Figure(
        "training-validation",
        "Validation",
        f"At step {rows[-1]['step']}: {pretty(best)} {told(final[best])}, {pretty(worst)} {told(final[worst])}"
        + (f"; {sum(value > 0 for value in final.values())} of {len(final)} data sets gain." if gain else "."),
        style.png(figure),
        "Curves: validation PSNR of every data set over the steps, on a few images each.",
    )


def speed(inputs: Inputs) -> Iterator[Block]:
    """Learning rate, images a second, and the share of time that training waited for data."""
    rows = _rows(inputs, "images_per_second")
    panels = (
        ("lr", "learning rate"),
        ("images_per_second", "images/s"),
        ("data_wait_fraction", "waiting for data (%)"),
    )
    panels = [panel for panel in panels if any(row.get(panel[0]) is not None for row in rows)]
    figure, axes = style.canvas(1.7 * len(panels), len(panels), sharex=True)
    for place, (key, title) in zip(axes[:, 0], panels, strict=True):
        steps, values = _series(rows, key)
        place.plot(steps, values * (100 if key == "data_wait_fraction" else 1), color=style.GOOD, linewidth=1.6)
        place.set_title(title, fontsize=10, loc="left")
        place.set_ylim(bottom=0)
    axes[-1, 0].set_xlabel("step")
    rate = np.median(_series(rows, "images_per_second")[1])
    waits = _series(rows, "data_wait_fraction")[1]
    yield Figure(
        "training-speed",
        "Learning rate and speed",
        f"Training saw {rate:.3g} images a second (median)"
        + (f" and spent {waits.mean():.1%} of its time waiting for data." if len(waits) else "."),
        style.png(figure),
        "Curves: learning rate, images a second and the share of time spent waiting for data.",
    )


def _rows(inputs: Inputs, key: str) -> list[dict[str, Any]]:
    rows = [row for row in inputs.log if row.get(key) is not None]
    if not rows:
        raise Missing(f"the training log has no row with “{key}” yet", TRAIN)
    return rows


def _series(rows: list[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return tuple(np.array(points, dtype=float).reshape(-1, 2).T)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a window of a tenth of the run, narrower at its ends."""
    half = max(1, len(values) // 20)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


BLOCKS = (losses, validation, speed)
