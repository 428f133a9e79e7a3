"""What a section of the report is made of: numbers, words and finished pictures, no HTML."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


class Missing(Exception):
    """An input of a block is not there or cannot be read; the report then says so, and how to make it."""

    def __init__(self, what: str, command: str):
        super().__init__(f"{what}; {command}")
        self.what, self.command = what, command


@dataclass(frozen=True)
class Figure:
    """A picture and a sentence, written from its numbers, that says what it shows."""

    title: str
    takeaway: str
    png: bytes
    alt: str
    """What the picture shows, for those who cannot see it."""
    name: str = ""
    """One of `page.FIGURES` for a chart, which is also written beside the page, for `dvc plots`."""
    wide: bool = False
    folded: bool = False
    kind = "figure"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first column names the row."""

    title: str
    takeaway: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[int] = frozenset({0})
    """Columns of words, which stand left; numbers stand right."""
    last_is_total: bool = False
    kind = "table"


@dataclass(frozen=True)
class Gallery:
    """Small pictures, each with a line of text; `[(png, text), ...]`."""

    title: str
    takeaway: str
    pictures: Sequence[tuple[bytes, str]]
    kind = "gallery"


@dataclass(frozen=True)
class Card:
    """A picture with pairs of term and text beside it."""

    title: str
    png: bytes
    pairs: Sequence[tuple[str, str]]
    kind = "card"


@dataclass(frozen=True)
class Listing:
    """Long text, folded away."""

    title: str
    text: str
    kind = "listing"


Block = Figure | Table | Gallery | Card | Listing


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


def visible(text: str) -> str:
    """Text from outside (captions, names, paths, errors), fit for a page, a chart and a terminal.

    Control characters and those that turn the direction of writing become U+FFFD: they would hide what follows.
    """
    return "".join(
        c if c.isprintable() or c in "\n\u200c\u200d" else " " if c.isspace() else "\ufffd" for c in text
    )


def pretty(name: str) -> str:
    """A task, domain or data set as people write it, in 40 characters at most: `natural_sr_x4` → `natural SR ×4`."""
    known = {"sr": "SR", "mri": "MRI", "ct": "CT", "x2": "×2", "x3": "×3", "x4": "×4"}
    words = " ".join(known.get(word.lower(), word) for word in visible(name).split("_"))
    return words if len(words) <= 40 else words[:39] + "…"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *front, last = list(words) or [""]
    return f"{', '.join(front)} and {last}" if front else last
