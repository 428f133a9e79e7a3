"""Runs side by side as one page: what changed, image by image; the curves of their training; their panels."""

import base64
import csv
import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from student.evaluation.metrics import bootstrap_interval

COLOURS = ("#0060a0", "#d55e00", "#8e3b9c", "#6a7383", "#b08900")
"""Of the runs; green and red mean better and worse."""
STYLE = """
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 76rem; color: #1d2129; font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } p { color: #5c6470; max-width: 46rem; }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid #dfe2e6; }
th:first-child { text-align: left; }
.gain { color: #0b7a4b; font-weight: 650; } .loss { color: #b3261e; font-weight: 650; }
figure { margin: 1.2rem 0; } figcaption { font-weight: 650; } svg { width: 100%; height: auto; }
img { max-width: 100%; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 34rem), 1fr)); gap: 1rem; }
"""


@dataclass(frozen=True)
class Change:
    """One run on one data set: image → PSNR (dB) above the first run's, of the images that both measured."""

    of_image: dict[str, float]

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Bootstrap 95 % interval of the mean."""
        return bootstrap_interval(list(self.of_image.values()))

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.of_image.values())))

    def told(self, first: dict[str, float]) -> str:
        """The run's own mean, and the change; `first`: the first run's PSNR by image."""
        if not self.of_image:
            return "–"
        of = f" (of {len(self.of_image)})" if len(self.of_image) < len(first) else ""
        own = np.mean([first[image] + change for image, change in self.of_image.items()])
        return f"{own:.2f}{of}, {self.mean:+.2f} [{self.interval[0]:+.2f}, {self.interval[1]:+.2f}]"


@dataclass(frozen=True)
class Comparison:
    """`sets`: data set → (image → PSNR of the first run, the changes of the others)."""

    runs: list[str]
    kind: str
    sets: dict[str, tuple[dict[str, float], list[Change]]]


def page(found: Comparison) -> str:
    """HTML that needs no other file. A change is coloured only where its interval excludes 0."""
    head = "".join(f"<th>{html.escape(run)}</th>" for run in found.runs)
    rows = []
    for name, (images, changes) in found.sets.items():
        cells = f"<td>{len(images)}</td><td>{np.mean(list(images.values())):.2f}</td>"
        for change in changes:
            cells += f'<td class="{_verdict(change)}">{change.told(images)}</td>'
        rows.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    others = ", ".join(
        f'<span style="color:{COLOURS[i % len(COLOURS)]}">● {html.escape(run)}</span>'
        for i, run in enumerate(found.runs[1:], 1)
    )
    parts = [
        f"<h1>{' · '.join(map(html.escape, found.runs))}</h1>",
        f"<p>PSNR in dB, {html.escape(found.kind.replace('`', ''))}, mean over the images. Differences to the first "
        "run are paired by image, with a bootstrap 95 % interval; green or red where it excludes 0.</p>",
        f"<table><tr><th>data set</th><th>images</th>{head}</tr>{''.join(rows)}</table>",
        f"<h2>Image by image</h2><p>PSNR above {html.escape(found.runs[0])}: one dot an image; the bar is the mean's "
        f"interval. {others}</p>",
        *(_dots(name, changes) for name, (_, changes) in found.sets.items()),
        *_curves(found.runs),
        *_panels(found.runs),
    ]
    title = html.escape(" · ".join(found.runs))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _verdict(change: Change) -> str:
    if not change.of_image:
        return ""
    low, high = change.interval
    return "gain" if low > 0 else "loss" if high < 0 else ""


def _figure(name: str, drawing: str) -> str:
    return f"<figure><figcaption>{html.escape(name)}</figcaption>{drawing}</figure>"


def _dots(name: str, changes: list[Change]) -> str:
    """Each image's change along one axis in dB, a line a run."""
    values = [value for change in changes for value in change.of_image.values()]
    if not values:
        return ""
    low, high = min(0.0, *values), max(0.0, *values)
    reach = (high - low) or 1.0
    place = lambda value: 20 + 960 * (value - low) / reach  # noqa: E731
    bottom = 26 * len(changes) + 12
    drawn = [f'<line x1="{place(0):.1f}" x2="{place(0):.1f}" y1="2" y2="{bottom}" stroke="#9aa1ab"/>']
    for number, change in enumerate(changes):
        colour, y = COLOURS[(number + 1) % len(COLOURS)], 18 + 26 * number
        for image, value in change.of_image.items():
            told = html.escape(f"{image}: {value:+.2f} dB")
            drawn.append(
                f'<circle cx="{place(value):.1f}" cy="{y}" r="4.5" fill="{colour}" fill-opacity=".45"><title>{told}'
                "</title></circle>"
            )
        if change.of_image:
            ends = [f"{place(end):.1f}" for end in change.interval]
            drawn.append(
                f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="6" '
                'stroke-linecap="round"/>'
            )
    for value, anchor in {(low, "start"), (0.0, "middle"), (high, "end")}:
        drawn.append(
            f'<text x="{place(value):.1f}" y="{bottom + 14}" font-size="12" text-anchor="{anchor}">'
            f"{value:+.2f} dB</text>".replace("+0.00", "0")
        )
    return _figure(name, f'<svg viewBox="0 0 1000 {bottom + 20}">{"".join(drawn)}</svg>')


def _curves(runs: list[str]) -> list[str]:
    """Validation PSNR by step, a figure a data set, of the runs whose students still lie where they were evaluated."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        try:
            model = json.loads((Path(run) / "results.json").read_text(encoding="utf-8"))["model"]["name"]
            for file in sorted(Path(model, "curves", "val").glob("*.tsv")):
                with open(file, newline="", encoding="utf-8") as lines:
                    points = [(float(row["step"]), float(row["psnr"])) for row in csv.DictReader(lines, delimiter="\t")]
                curves.setdefault(file.stem, {})[run] = points
        except (OSError, KeyError, ValueError, TypeError):
            continue  # an evaluation of another kind, or its student is elsewhere: its scores stand above all the same
    figures = [_figure(name, _lines(of_run, runs)) for name, of_run in sorted(curves.items())]
    return ["<h2>Training</h2><p>Validation PSNR (dB) by step.</p><div class=pair>", *figures, "</div>"] * bool(figures)


def _lines(of_run: dict[str, list[tuple[float, float]]], runs: list[str]) -> str:
    steps, values = (np.array([point[i] for points in of_run.values() for point in points]) for i in (0, 1))
    wide, tall = max(steps.max() - steps.min(), 1), max(values.max() - values.min(), 1e-6)
    drawn = []
    for run, points in of_run.items():
        line = " ".join(
            f"{40 + 540 * (x - steps.min()) / wide:.1f},{150 - 130 * (y - values.min()) / tall:.1f}" for x, y in points
        )
        colour = COLOURS[runs.index(run) % len(COLOURS)]
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn.append(
            f'<text x="590" y="{20 + 18 * runs.index(run)}" font-size="13" text-anchor="end" fill="{colour}">'
            f"{html.escape(run)}</text>"
        )
    for x, y, text in (
        (0, 24, f"{values.max():.2f}"),
        (0, 154, f"{values.min():.2f}"),
        (540, 172, f"{steps.max():.0f}"),
    ):
        drawn.append(f'<text x="{x}" y="{y}" font-size="12">{text}</text>')
    return f'<svg viewBox="0 0 600 176">{"".join(drawn)}</svg>'


def _panels(runs: list[str]) -> list[str]:
    """The sheets of each task that the runs have, side by side."""
    sheets: dict[str, list[str]] = {}
    for run in runs:
        for file in sorted((Path(run) / "panels").glob("*.png")):
            data = base64.b64encode(file.read_bytes()).decode()
            sheets.setdefault(file.stem, []).append(_figure(run, f'<img src="data:image/png;base64,{data}">'))
    parts = [f"<h3>{html.escape(name)}</h3><div class=pair>{''.join(of)}</div>" for name, of in sorted(sheets.items())]
    return ["<h2>Pictures</h2>", *parts] * bool(parts)
