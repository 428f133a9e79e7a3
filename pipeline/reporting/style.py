"""How every chart looks. Colours mean the same on the whole page: green better, red worse, grey not known, else domains."""

import io
import warnings
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

BETTER, WORSE, UNSURE, INK = "#0b7a4b", "#b3261e", "#8a8f98", "#1d2129"
"""The first two as in the pictures of student/evaluation/contact_sheet.py."""
DOMAINS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000", "#8c6bb1")
"""Okabe & Ito (2008), told apart with every common kind of colour blindness, without their green and red."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE = {
    "font.size": 11,
    "axes.edgecolor": "#9aa0a8",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e8eb",
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "text.parse_math": False,  # a name with two $ is no formula
}


def colours(domains: Iterable[str]) -> dict[str, str]:
    """A colour for each domain, by its place; the palette repeats after six, so pair it with `MARKERS`."""
    return {name: DOMAINS[number % len(DOMAINS)] for number, name in enumerate(sorted(domains))}


def canvas(height: float, rows: int = 1, columns: int = 1, width: float = 5.6, **options) -> tuple[Figure, np.ndarray]:
    """A figure (inches; 5.6 shown 350 px wide leave 10 px to a letter) and its axes `[rows, columns]`."""
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained", dpi=144)
    FigureCanvasAgg(figure)  # needs no display and no pyplot
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def png(figure: Figure) -> bytes:
    """The chart as PNG with a palette, a third of the bytes; the same numbers give the same bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in scripts that the font lacks are drawn as boxes
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return picture(Image.open(buffer).convert("RGB").quantize(255, dither=Image.Dither.NONE))


def picture(image: Image.Image) -> bytes:
    """An image's PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
