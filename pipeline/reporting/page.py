"""Sections → one HTML page that needs no network, with its charts beside it as PNG files."""

import base64
import struct
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.reporting.blocks import Figure, Section, visible
from student.files import write_file

TEMPLATE = Path(__file__).with_name("page.html.j2")
FIGURES = ("results-changes", "priors-map", "training-losses", "training-validation")
"""All files that the report ever writes below figures/, and so may remove: no name comes from outside."""


def render(title: str, lead: str, facts: Sequence[tuple[str, str]], sections: Sequence[Section]) -> str:
    """The page. Every text goes through `visible` and is escaped: captions and names may hold anything."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
    )
    environment.filters["source"] = _source
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, lead=lead, facts=facts, sections=sections)


def write(folder: Path, html: str, sections: Sequence[Section]) -> None:
    """index.html and figures/*.png, the page last; charts that the report no longer has are removed."""
    charts = {block.name: block.png for s in sections for block in s.blocks if isinstance(block, Figure) and block.name}
    for name in FIGURES:
        file = folder / "figures" / f"{name}.png"
        if name in charts:
            write_file(file, charts.pop(name))
        else:
            file.unlink(missing_ok=True)
    assert not charts, f"add to FIGURES: {list(charts)}"
    write_file(folder / "index.html", html)


def _source(png: bytes) -> Markup:
    """A PNG as attributes of <img>, with its size, so that the page does not jump while it loads."""
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode()
    return Markup(f'src="data:image/png;base64,{data}" width="{width}" height="{height}"')
