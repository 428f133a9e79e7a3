"""Section "Training": losses and validation over the steps."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.reporting import style
from pipeline.reporting.blocks import Block, Figure, Missing, pretty
from pipeline.reporting.inputs import TRAIN, Inputs

LOSSES = {
    "loss": "total (weighted)",
    "loss_pixel": "pixel: |restored − gt|",
    "loss_fft": "fft: the same in frequencies",
    "loss_align": "align: 1 − cos(prompt, prior)",
    "loss_diversity": "diversity: prompts too alike",
    "loss_balance": "balance: uneven use",
    "loss_contrastive": "contrastive: mixed labels",
}


def losses(inputs: Inputs) -> Iterator[Block]:
    """Every loss that was on, un-weighted, as logged and as a mean over a tenth of the run."""
    rows = _rows(inputs, "loss")
    on = [key for key in LOSSES if any(row.get(key) is not None for row in rows)]
    height = -(-len(on) // 4)
    figure, axes = style.canvas(2.3 * height + 0.2, height, min(4, len(on)), width=11.6, sharex=True)
    for place, key in zip(axes.flat, on, strict=False):
        steps, values = np.array([(row["step"], row[key]) for row in rows if row.get(key) is not None], dtype=float).T
        half = max(1, len(values) // 20)
        smooth = [values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))]
        place.plot(steps, values, color=style.INK, alpha=0.3, linewidth=1)
        place.plot(steps, smooth, color=style.INK, linewidth=2)
        place.set_title(LOSSES[key], fontsize=10, loc="left")
    for place in list(axes.flat)[len(on) :]:
        place.set_visible(False)
    figure.supxlabel("step", fontsize=11)
    told = f"Steps {rows[0]['step']:,} to {rows[-1]['step']:,}; faint: as logged, strong: smoothed."
    yield Figure("Losses", told, style.png(figure), "training-losses", wide=True)


def validation(inputs: Inputs) -> Iterator[Block]:
    """Change in PSNR over the degraded input, per data set."""
    rows = _rows(inputs, "val")
    names = sorted({name for row in rows for name, score in row["val"].items() if score.get("psnr_gain") is not None})
    if not names:
        return  # clean inputs have nothing to win
    domain_of = inputs.pairs.domain_of
    colours = style.colours(domain_of.values())
    figure, axes = style.canvas(3.4 + 0.14 * len(names))
    for place, name in enumerate(names):
        points = [(row["step"], row["val"][name]["psnr_gain"]) for row in rows if name in row["val"]]
        colour, marker = colours.get(domain_of.get(name), style.UNSURE), style.MARKERS[place % len(style.MARKERS)]
        axes[0, 0].plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=5, label=pretty(name))
    axes[0, 0].axhline(0, color=style.INK, linewidth=1)
    axes[0, 0].set(xlabel="step", ylabel="change in PSNR over the input (dB)")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    told = "Measured during training on a few held-out images of each data set." + " A colour is a domain." * (
        len(colours) > 1
    )
    yield Figure("Validation", told, style.png(figure), "training-validation")


def _rows(inputs: Inputs, key: str) -> list[dict[str, Any]]:
    rows = [row for row in inputs.log if row.get(key) is not None]
    if not rows:
        raise Missing(f"the training log has no row with “{key}” yet", TRAIN)
    return rows


BLOCKS = (losses, validation)
