"""How charts look. One colour, one meaning: green better, red worse, grey not known, black a loss, others domains."""

import io
import warnings
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BETTER, WORSE, UNSURE, INK = "#0b7a4b", "#b3261e", "#8a8f98", "#1d2129"
"""The first two as in the pictures of student/evaluation/panels.py."""
DOMAINS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#8c6bb1", "#9a6324")
"""Okabe & Ito (2008), told apart with every common kind of colour blindness, without their green and red."""
MARKERS = "os^DvPX*"
STYLE = {
    "axes.edgecolor": "#9aa0a8",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "font.size": 11,
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "text.parse_math": False,  # a name with two $ is no formula
}


def colours(domains: Iterable[str]) -> dict[str, str]:
    """A colour for each domain, by its place; the palette repeats after six, so pair it with `MARKERS`."""
    return {name: DOMAINS[number % len(DOMAINS)] for number, name in enumerate(sorted(set(domains)))}


def canvas(height: float, rows: int = 1, columns: int = 1, width: float = 5.6, **options) -> tuple[Figure, np.ndarray]:
    """A figure (in inches) that needs no display and no pyplot, and its axes `[rows, columns]`."""
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=144)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The chart's bytes; the same numbers give the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in scripts that the font lacks are drawn as boxes
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
