"""What a section of the report is made of. Blocks carry numbers and finished pictures, no HTML and no matplotlib."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

NUMBER = re.compile(r"–|[-+]?\d[\d.,]*( / (–|[\d.]+))?( [(\[].*[)\]])?")
"""A number, two with a slash, or one with its interval or remark in brackets; or the dash for none."""


class Missing(Exception):
    """An input of a block is not there or cannot be read; the report then says so, and how to make it."""

    def __init__(self, what: str, command: str, optional: bool = False):
        super().__init__(f"{what}; {command}")
        self.what, self.command, self.optional = what, command, optional


@dataclass(frozen=True)
class Figure:
    """A picture and one sentence, written from its numbers, that says what it shows."""

    name: str
    """File name without suffix; unique in the report."""
    title: str
    takeaway: str
    png: bytes
    alt: str
    """What the picture shows, for those who cannot see it."""
    wide: bool = False
    """Takes the whole row on a large screen."""
    pixelated: bool = False
    """Enlarge without smoothing."""
    kind = "Figure"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    title: str
    takeaway: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    last_is_total: bool = False
    kind = "Table"

    def is_text(self, column: int) -> bool:
        """Whether the column holds words, which stand left, and no numbers, which stand right."""
        cells = [row[column] for row in self.rows if row[column]]
        return column == 0 or sum(NUMBER.fullmatch(cell) is None for cell in cells) * 2 > len(cells)


@dataclass(frozen=True)
class Card:
    """A picture with pairs of term and text beside it."""

    title: str
    png: bytes
    alt: str
    pairs: Sequence[tuple[str, str]]
    kind = "Card"


@dataclass(frozen=True)
class Listing:
    """Long text that is folded away on screen."""

    title: str
    text: str
    kind = "Listing"


Block = Figure | Table | Card | Listing


@dataclass
class Section:
    """A heading, what it is about, its blocks and what is missing for more."""

    key: str
    title: str
    about: str
    blocks: list[Block] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def add(self, make: Callable[..., Iterable[Block]], *arguments) -> None:
        """Append what `make` yields, or note what it lacks (each lack once)."""
        try:
            self.blocks.extend(make(*arguments))
        except Missing as missing:
            if str(missing) not in map(str, self.missing):
                self.missing.append(missing)


def decibel(value: float) -> str:
    """A signed gain, e.g. `+1.23 dB`."""
    return f"{value:+.2f} dB"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *front, last = list(words) or [""]
    return f"{', '.join(front)} and {last}" if front else last


def pretty(name: str) -> str:
    """A task, domain or data set as people write it: `natural_sr_x4` → `natural SR ×4`."""
    words = name.split("_")
    known = {"sr": "SR", "mri": "MRI", "ct": "CT", "x2": "×2", "x3": "×3", "x4": "×4"}
    return " ".join(known.get(word.lower(), word) for word in words)
