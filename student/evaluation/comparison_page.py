"""The comparison as one HTML file that needs nothing else: tables, gains, curves, pictures.

A colour is a run; green and red are kept for what is better and worse beyond its interval.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from student.evaluation.comparison import Cell, Points, Run, cell, curves, tasks
from student.evaluation.panels import file_name

COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#8c6bb1", "#9a6324")
"""Okabe & Ito (2008), told apart with every common kind of colour blindness, without their green and red."""
STYLE = """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 0 1rem 3rem; max-width: 76rem; }
body { color: #1d2129; font: 16px/1.5 system-ui, Arial, sans-serif; }
h1 { font-size: 1.8rem; margin: 2rem 0 .4rem; }
h2 { font-size: 1.4rem; margin: 2.4rem 0 0; padding-top: 1rem; border-top: 2px solid; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } p { margin: .3rem 0; max-width: 46rem; color: #5c6470; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid #dfe2e6; white-space: nowrap; }
.scroll { overflow-x: auto; }
th:first-child, td:first-child, .tasks th:nth-child(2), .tasks td:nth-child(2) {
  text-align: left; white-space: normal; overflow-wrap: anywhere; }
.better { color: #0b7a4b; font-weight: 650; } .worse { color: #b3261e; font-weight: 650; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em; }
svg { display: block; width: 100%; height: auto; font: 12px system-ui, Arial, sans-serif; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: .6rem 1.4rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; } img { display: block; width: 100%; height: auto; }
"""
LEFT, RIGHT = 230, 40
"""Margins of the chart of gains, in its 1000 units of width."""


def page(runs: Sequence[Run]) -> str:
    """The whole page."""
    parts = [_overall(runs), _by_task(runs), _curves(runs), _pictures(runs)]
    told = f"PSNR in dB, {runs[0].kind.replace('`', '')}. Changes are to {runs[0].folder}, paired by image; in "
    told += "brackets bootstrap 95 % intervals. Green and red: better and worse beyond the interval."
    keys = "".join(f"<p>{_key(i)}{_name(run)}</p>" for i, run in enumerate(runs))
    head = f"<h1>{len(runs)} runs compared</h1><p>{escape(told)}</p>{keys}"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Runs compared</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style><body>{head}{''.join(parts)}</body></html>\n"
    )


def _key(i: int) -> str:
    return f'<span class="key" style="background:{COLOURS[i % len(COLOURS)]}"></span>'


def _name(run: Run) -> str:
    return escape(str(run.folder))


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    head = "".join(f"<th>{text}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{text}</td>' for text in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def _numbers(found: Cell | None, is_first: bool) -> list[str]:
    """Images, PSNR, gain, change."""
    if found is None:
        return ["0", "–", "–", "–"]
    gain = "clean: to be kept"
    if found.gain is not None and found.gain_interval is not None:
        gain = _judged(found.gain, found.gain_interval)
    change = "" if is_first else _judged(found.change, found.change_interval)
    return [str(found.images), f"{found.psnr:.2f}", gain, change]


def _judged(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    kind = "better" if low > 0 else "worse" if high < 0 else ""
    return f'<span class="{kind}">{value:+.2f}</span> [{low:+.2f}, {high:+.2f}]'


HEADS = ("images", "PSNR", "gain over the input", "change to the first run")


def _overall(runs: Sequence[Run]) -> str:
    groups = [*tasks(runs[0]).values()]
    rows = ([_key(i) + _name(run), *_numbers(cell(runs[0], run, groups), i == 0)] for i, run in enumerate(runs))
    return f"<h2>Overall</h2><p>The unweighted mean over {len(groups)} tasks.</p>" + _table(("run", *HEADS), rows)


def _by_task(runs: Sequence[Run]) -> str:
    found = {task: [cell(runs[0], run, [names]) for run in runs] for task, names in tasks(runs[0]).items()}
    rows = (
        [escape(task) if i == 0 else "", _key(i) + _name(runs[i]), *_numbers(one, i == 0)]
        for task, cells in found.items()
        for i, one in enumerate(cells)
    )
    told = "<p>A dot is a run's gain in PSNR over the input, its line the bootstrap 95 % interval.</p>"
    return f"<h2>By task</h2>{told}{_chart(found)}" + _table(("task", "run", *HEADS), rows, "tasks")


def _chart(found: dict[str, list[Cell | None]]) -> str:
    """Gains with their intervals as SVG; empty where no input was degraded."""
    shown = {task: cells for task, cells in found.items() if any(one and one.gain is not None for one in cells)}
    ends = [0.0, *(x for cells in shown.values() for one in cells if one for x in one.gain_interval or ())]
    if not shown:
        return ""
    ticks = _ticks(min(ends), max(ends))
    low, high = min(ticks[0], *ends), max(ticks[-1], *ends)

    def at(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (1000 - LEFT - RIGHT)

    parts, y = [], 10.0
    for task, cells in shown.items():
        parts.append(f'<text x="0" y="{y + 7 * len(cells) + 4:.0f}">{escape(task[:36])}</text>')
        for i, one in enumerate(cells):
            y += 14
            if one is not None and one.gain is not None and one.gain_interval is not None:
                colour, (first, last) = COLOURS[i % len(COLOURS)], map(at, one.gain_interval)
                parts.append(
                    f'<line x1="{first:.1f}" x2="{last:.1f}" y1="{y - 4:.0f}" y2="{y - 4:.0f}" stroke="{colour}" '
                    f'stroke-width="2"/><circle cx="{at(one.gain):.1f}" cy="{y - 4:.0f}" r="4" fill="{colour}"/>'
                )
        y += 12
    grid = [
        f'<line x1="{at(t):.1f}" x2="{at(t):.1f}" y1="4" y2="{y:.0f}" stroke="{"#1d2129" if t == 0 else "#e6e8eb"}"/>'
        f'<text x="{at(t):.1f}" y="{y + 14:.0f}" text-anchor="middle">{t:+g}{" dB" if t == ticks[-1] else ""}</text>'
        for t in ticks
    ]
    return f'<svg viewBox="0 0 1000 {y + 22:.0f}" role="img">{"".join([*grid, *parts])}</svg>'


def _curves(runs: Sequence[Run]) -> str:
    """Small plots: the training loss, and the validation of each data set."""
    lines = [curves(run) for run in runs]
    names = list(dict.fromkeys(name for one in lines for name in sorted(one)))
    if not names:
        return ""
    plots = "".join(
        f"<div><h3>{escape(name) or 'Training loss'}</h3>{_plot([one.get(name, []) for one in lines])}</div>"
        for name in names
    )
    told = "<p>The training of each run: its weighted loss, and the gain in PSNR over the input on a few held-out "
    return f'<h2>Curves</h2>{told}images of each data set (dB), by step.</p><div class="plots">{plots}</div>'


def _plot(lines: list[Points]) -> str:
    xs, ys = ([point[axis] for line in lines for point in line] for axis in (0, 1))
    ticks = _ticks(min(ys), max(ys), 4)
    (left, right), (bottom, top) = (min(xs), max(xs)), (min(ticks[0], *ys), max(ticks[-1], *ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) if right > left else 0.5
        return 44 + 300 * across, 160 - 150 * (y - bottom) / (top - bottom)

    parts = []
    for tick in ticks:
        y = place(left, tick)[1]
        parts.append(f'<line x1="44" x2="344" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6e8eb"/>')
        parts.append(f'<text x="40" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for i, line in enumerate(lines):
        places = [place(*point) for point in line]
        colour, marked = COLOURS[i % len(COLOURS)], places if len(places) < 30 else []
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{colour}"/>' for x, y in marked]
    parts += [f'<text x="{x}" y="178" text-anchor="middle">{value:g}</text>' for x, value in ((44, left), (344, right))]
    return f'<svg viewBox="0 0 370 184" role="img">{"".join(parts)}</svg>'


def _ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers from below `low` to above `high`, at least two."""
    step = 10 ** math.floor(math.log10(max(high - low, 1e-6) / most))
    step *= next(times for times in (1, 2, 5, 10, 20) if (high - low) / (step * times) <= most)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 9) for number in range(first, max(last, first + 1) + 1)]


def _pictures(runs: Sequence[Run]) -> str:
    parts = []
    for task in tasks(runs[0]):
        files = [(run, run.folder / "panels" / f"{file_name(task)}.png") for run in runs]
        there = [(run, file) for run, file in files if file.is_file()]
        if there:
            shown = "".join(
                f"<figure><figcaption>{_name(run)}</figcaption>"
                f'<img alt="{escape(task)}" src="{_source(file)}"></figure>'
                for run, file in there
            )
            parts.append(f'<h3>{escape(task)}</h3><div class="pictures">{shown}</div>')
    told = "<p>Of each task the best, the median and the worst image of each run, by its own gain.</p>"
    return f"<h2>Pictures</h2>{told}{''.join(parts)}" if parts else ""


def _source(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
