"""Means, intervals and paired differences of an ablation, and its table: arithmetic only."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from pipeline.ablation.config import AblateConfig

Scores = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""variant → seed → the content of metrics.json."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % interval by Student's t (n - 1 degrees of freedom)."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Of at least one value; with one, the interval is everything."""
        values = np.asarray(values, dtype=float)
        n, mean = len(values), float(np.mean(values))
        if n < 2:
            return cls(mean, -np.inf, np.inf, n)
        half = float(student_t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
        return cls(mean, mean - half, mean + half, n)

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:+.3f} [one seed]"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Row:
    """One variant: its own gain, and its difference to what it is compared with, paired by seed."""

    variant: str
    asks: str
    against: str | None
    gain: Interval
    difference: Interval | None
    by_task: dict[str, Interval]
    """Paired differences per task; of the variant that is compared with nothing, the gains."""
    verdict: str


def rows(config: AblateConfig, scores: Scores) -> list[Row]:
    """The table's rows, in the order of the configuration; variants without a finished run are left out.

    The number compared is the PSNR gain over the degraded input in dB, unweighted mean over the tasks that both sides
    have (so that a variant trained on fewer tasks is compared on these).
    """
    table = []
    for name, variant in config.variants.items():
        mine = scores.get(name, {})
        if not mine:
            continue
        gain = Interval.of([run["overall"]["psnr_gain"] for run in mine.values()])
        against = variant.against or config.reference
        other = scores.get(against, {})
        seeds = sorted(mine.keys() & other.keys()) if against != name else []
        if not seeds:
            tasks = sorted(next(iter(mine.values()))["tasks"])
            by_task = {task: Interval.of([run["tasks"][task]["psnr_gain"] for run in mine.values()]) for task in tasks}
            table.append(Row(name, variant.asks, None, gain, None, by_task, ""))
            continue
        tasks = sorted(mine[seeds[0]]["tasks"].keys() & other[seeds[0]]["tasks"].keys())
        paired = np.array(
            [[mine[s]["tasks"][t]["psnr_gain"] - other[s]["tasks"][t]["psnr_gain"] for t in tasks] for s in seeds]
        )
        difference = Interval.of(paired.mean(1))
        by_task = {task: Interval.of(paired[:, place]) for place, task in enumerate(tasks)}
        table.append(Row(name, variant.asks, against, gain, difference, by_task, verdict(difference, variant.control)))
    return table


def verdict(difference: Interval, control: bool) -> str:
    """What the interval allows to say."""
    if difference.low > 0:
        return "helps: THE CONTROL FAILS" if control else "helps"
    if difference.high < 0:
        return "hurts"
    return "no difference shown"


def markdown(table: Sequence[Row], seeds: Sequence[int], variant: str) -> str:
    """The table as people paste it."""
    lines = [
        f"PSNR gain over the degraded input (dB, metric variant `{variant}`, unweighted mean over the variant's "
        f"tasks) of {len(seeds)} seeds; brackets: 95 % interval by Student's t. Differences are paired by seed, over "
        "the tasks that both sides have.",
        "",
        "| variant | gain | compared with | difference | | asks |",
        "|---|--:|---|--:|---|---|",
    ]
    for row in table:
        difference = "" if row.difference is None else str(row.difference)
        lines.append(
            f"| {row.variant} | {row.gain} | {row.against or '–'} | {difference} | {row.verdict} | {row.asks} |"
        )
    tasks = sorted({task for row in table for task in row.by_task})
    lines += [
        "",
        "By task: mean paired difference (dB); of variants that are compared with nothing, the gain.",
        "",
        f"| variant | {' | '.join(tasks)} |",
        f"|---|{'--:|' * len(tasks)}",
    ]
    for row in table:
        cells = [f"{row.by_task[task].mean:+.3f}" if task in row.by_task else "–" for task in tasks]
        lines.append(f"| {row.variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def as_json(table: Sequence[Row], seeds: Sequence[int], variant: str, baseline: str) -> dict[str, Any]:
    """What the report reads. Infinite bounds (one seed) are null, as JSON wants it."""
    found = [asdict(row) for row in table]
    for row in found:
        for interval in (row["gain"], row["difference"], *row["by_task"].values()):
            if interval and interval["n"] < 2:
                interval["low"] = interval["high"] = None
    return {"variant": variant, "seeds": list(seeds), "commit": baseline, "rows": found}
