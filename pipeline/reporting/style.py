"""How every figure of the report looks: dark on light, colour-blind-safe, large type, narrow enough for a phone."""

import io
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

# Okabe & Ito (2008): told apart with every common kind of colour blindness. Yellow is last, it is faint on white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GOOD, BAD, NEUTRAL, INK = "#0072B2", "#D55E00", "#8a8f98", "#1d2129"
SEQUENTIAL = "cividis"
"""Even lightness, made for colour-blind readers (Nuñez et al. 2018)."""

# 5.6 inches shown 350 px wide leave 10 px to a 11 pt letter: still readable on a phone.
WIDTH = 5.6
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.edgecolor": "#9aa0a8",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, by its place; the palette repeats after eight, so pair it with `markers`."""
    return {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}


def markers(names: Iterable[str]) -> dict[str, str]:
    """A marker for each name, so that colour is never the only difference."""
    return {name: MARKERS[number % len(MARKERS)] for number, name in enumerate(names)}


def canvas(
    height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **options
) -> tuple[Figure, np.ndarray]:
    """A figure in the report's style and its axes `[rows, columns]`; needs no display and no pyplot state."""
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=144)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The figure's bytes; the same numbers give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return _compact(Image.open(buffer))


def _compact(image: Image.Image) -> bytes:
    """PNG with a palette: a third of the bytes, and a chart has few colours."""
    buffer = io.BytesIO()
    image.convert("RGB").quantize(255, dither=Image.Dither.NONE).save(buffer, format="PNG")
    return buffer.getvalue()


def picture(image: Image.Image) -> bytes:
    """A photograph's PNG bytes, full colour."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def heatmap(
    axes: Axes, values: np.ndarray, rows: list[str], columns: list[str], form: str = "{:.2f}", **limits
) -> None:
    """Cells `[rows, columns]` with their numbers, if there are few enough to read."""
    image = axes.imshow(values, cmap=SEQUENTIAL, aspect="auto", **limits)
    axes.grid(False)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(columns)), columns)
    axes.tick_params(length=0)
    if len(columns) > 10:
        axes.tick_params(axis="x", labelsize=8)
    if len(columns) <= 8 and len(rows) <= 12:
        for (row, column), value in np.ndenumerate(values):
            dark = image.norm(value) < 0.5
            axes.text(column, row, form.format(value), ha="center", va="center", color="white" if dark else "black")
    else:
        axes.figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02)
