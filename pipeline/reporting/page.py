"""Sections → one HTML page that needs no network, with its pictures beside it as PNG files."""

import base64
import struct
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.reporting.blocks import Figure, Section
from student.files import write_file

TEMPLATE = Path(__file__).with_name("page.html.j2")


def render(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section], foot: str) -> str:
    """The page. Every text is escaped: captions are a model's output and may hold anything."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    environment.filters["size"] = _size
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, lead=lead, facts=facts, sections=sections, foot=foot)


def write(folder: Path, html: str, sections: Sequence[Section]) -> None:
    """index.html and figures/*.png, the page last; pictures that the report no longer has are removed."""
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    kept = set()
    for section in sections:
        for block in section.blocks:
            if isinstance(block, Figure):
                write_file(figures / f"{block.name}.png", block.png)
                kept.add(f"{block.name}.png")
    for file in figures.glob("*.png"):
        if file.name not in kept:
            file.unlink()
    write_file(folder / "index.html", html.encode())


def _size(png: bytes) -> Markup:
    """width and height of a PNG as attributes, so that the page does not jump while it loads."""
    width, height = struct.unpack(">II", png[16:24])
    return Markup(f' width="{width}" height="{height}"')
