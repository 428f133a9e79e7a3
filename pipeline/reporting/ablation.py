"""Section "ablation": which part helps, by differences paired over seeds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.reporting import style as style
from pipeline.reporting.blocks import Block, Figure, Missing, Table, listed
from pipeline.reporting.inputs import Inputs

ABLATE = "cp recipes/ablation.yaml params.yaml && python -m pipeline.ablate"


def differences(inputs: Inputs) -> Iterator[Block]:
    """Forest plot and table of what `pipeline.ablate` measured."""
    file = Path(inputs.paths.report).with_name("ablation") / "results.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        rows = [row for row in found["rows"] if row["difference"]]
        table = [_row(row) for row in found["rows"]]
        seeds = len(found["seeds"])
    except FileNotFoundError:
        raise Missing("No ablation was run here.", ABLATE, optional=True) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Missing(f"{file}: {error}", ABLATE) from None
    if rows:
        figure, axes = style.canvas(1.2 + 0.42 * len(rows))
        for place, row in enumerate(rows):
            low, mean, high = (row["difference"][key] for key in ("low", "mean", "high"))
            low, high = (mean, mean) if low is None else (low, high)
            color = style.GOOD if low > 0 else style.BAD if high < 0 else style.NEUTRAL
            axes[0, 0].plot([low, high], [place, place], color=color, linewidth=2)
            axes[0, 0].plot(mean, place, "o", color=color, markersize=7)
        axes[0, 0].axvline(0, color=style.INK, linewidth=1)
        axes[0, 0].set_yticks(range(len(rows)), [f"{row['variant']} − {row['against']}" for row in rows], fontsize=9)
        axes[0, 0].invert_yaxis()
        axes[0, 0].set_xlabel("difference in PSNR (dB), 95 % interval")
        sure = [f"{row['variant']} {row['verdict']}" for row in rows if row["verdict"] != "no difference shown"]
        yield Figure(
            "ablation-differences",
            "Differences, paired by seed",
            f"Of {len(rows)} comparisons over {seeds} seeds {len(sure)} show a difference"
            + (f": {listed(sure)}." if sure else "; every interval contains 0."),
            style.png(figure),
            "Points with intervals: the paired difference of every variant to what it is compared with.",
        )
    yield Table(
        "Ablation",
        f"PSNR gain over the degraded input (dB, metric variant {found['variant']}), mean over a variant's "
        f"tasks and {seeds} seeds; brackets: 95 % interval by Student's t. Differences: over the tasks "
        "that both sides have.",
        ["variant", "gain", "against", "difference", "verdict", "asks"],
        table,
    )


def _row(row: dict[str, Any]) -> list[str]:
    difference = _interval(row["difference"]) if row["difference"] else "–"
    return [row["variant"], _interval(row["gain"]), row["against"] or "–", difference, row["verdict"], row["asks"]]


def _interval(values: dict[str, Any]) -> str:
    bounds = "one seed" if values["low"] is None else f"{values['low']:+.2f}, {values['high']:+.2f}"
    return f"{values['mean']:+.2f} [{bounds}]"


BLOCKS = (differences,)
