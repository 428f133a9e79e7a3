"""What a section of the report is made of: numbers, words and finished pictures, no HTML."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field


class Missing(Exception):
    """An input is not there or cannot be read; the report then says so, and how to make it."""

    def __init__(self, what: str, command: str):
        super().__init__(f"{what}; {command}")
        self.what, self.command = what, command


@dataclass(frozen=True)
class Figure:
    """A picture and sentences, written from its numbers, that say what it shows."""

    title: str
    takeaway: str
    png: bytes
    name: str = ""
    """One of `page.FIGURES` for a chart, which is also written beside the page, for `dvc plots`."""
    wide: bool = False
    folded: bool = False
    kind = "figure"


@dataclass(frozen=True)
class Table:
    """Rows of text. `words`: the columns that stand left; numbers stand right."""

    title: str
    takeaway: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = (0,)
    last_is_total: bool = False
    kind = "table"


@dataclass(frozen=True)
class Pictures:
    """Small pictures, each with a title and pairs of term and text: `[(png, title, [(term, text), ...]), ...]`."""

    title: str
    takeaway: str
    cards: Sequence[tuple[bytes, str, Sequence[tuple[str, str]]]]
    kind = "pictures"


@dataclass(frozen=True)
class Listing:
    """Long text, folded away."""

    title: str
    text: str
    kind = "listing"


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
