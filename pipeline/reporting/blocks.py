"""What a section of the report is made of: numbers, words and finished pictures, no HTML."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Missing(Exception):
    """An input is not there or cannot be read; the report then says so, and how to make it."""

    def __init__(self, what: str, command: str):
        super().__init__(f"{what}; {command}")
        self.what, self.command = what, command


class Figure(NamedTuple):
    """A picture and sentences, written from its numbers, that say what it shows; without `name` it is no chart."""

    title: str
    takeaway: str
    png: bytes
    name: str = ""
    wide: bool = False
    folded: bool = False


class Table(NamedTuple):
    """Rows of text. `words`: the columns that stand left; numbers stand right."""

    title: str
    takeaway: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)


class Pictures(NamedTuple):
    """Small pictures, each with a title and pairs of term and text: `[(png, title, [(term, text), ...]), ...]`."""

    title: str
    takeaway: str
    cards: Sequence[tuple[bytes, str, Sequence[tuple[str, str]]]]


class Listing(NamedTuple):
    """Long text, folded away."""

    title: str
    text: str


Block = Figure | Table | Pictures | Listing


@dataclass
class Section:
    """A heading, what it is about, its blocks and what is missing for more."""

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

    Control characters, and those that turn the direction of writing, would hide what follows: they become U+FFFD.
    """
    return "".join(c if c.isprintable() or c in "\n\u200c\u200d" else " " if c.isspace() else "\ufffd" for c in text)


def pretty(name: str) -> str:
    """A task, domain or data set as people write it, in 40 characters at most: `natural_sr_x4` → `natural SR ×4`."""
    known = {"sr": "SR", "mri": "MRI", "ct": "CT", "x2": "×2", "x3": "×3", "x4": "×4"}
    words = " ".join(known.get(word.lower(), word) for word in visible(name).split("_"))
    return words if len(words) <= 40 else words[:39] + "…"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *front, last = list(words) or [""]
    return f"{', '.join(front)} and {last}" if front else last
