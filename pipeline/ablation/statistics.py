"""Means, intervals and paired differences of an ablation, and its table: arithmetic only."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import sem
from scipy.stats import t as student_t

from pipeline.ablation.config import AblateConfig

Runs = Mapping[int, Mapping[str, Any]]
"""seed → the content of metrics.json."""


class Interval(NamedTuple):
    """A mean over `n` seeds with its 95 % interval by Student's t; of one seed, everything."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        mean, n = float(np.mean(values)), len(values)
        half = float(student_t.ppf(0.975, n - 1) * sem(values)) if n > 1 else np.inf
        return cls(mean, mean - half, mean + half, n)

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]" if self.n > 1 else f"{self.mean:+.3f} [one seed]"


def differences(mine: Runs, other: Runs) -> dict[str, Interval]:
    """PSNR gain (dB) of `mine` minus that of `other`, paired by seed: by task, and under "" the unweighted mean over
    the tasks that both have. Empty where they share no seed."""
    seeds = sorted(mine.keys() & other.keys())
    if not seeds:
        return {}
    tasks = sorted(mine[seeds[0]]["tasks"].keys() & other[seeds[0]]["tasks"].keys())
    paired = np.array(
        [[mine[s]["tasks"][t]["psnr_gain"] - other[s]["tasks"][t]["psnr_gain"] for t in tasks] for s in seeds]
    )
    return {"": Interval.of(paired.mean(1)), **{task: Interval.of(paired[:, i]) for i, task in enumerate(tasks)}}


def verdict(difference: Interval, control: bool) -> str:
    """What the interval allows to say."""
    if difference.low > 0:
        return "helps: THE CONTROL FAILS" if control else "helps"
    return "hurts" if difference.high < 0 else "no difference shown"


def markdown(config: AblateConfig, scores: Mapping[str, Runs], metric: str) -> str:
    """The table as people paste it, of the variants that have a finished run."""
    lines = [
        f"PSNR gain over the degraded input (dB, metric variant `{metric}`, unweighted mean over the variant's tasks) "
        f"of {len(config.seeds)} seeds; brackets: 95 % interval by Student's t. Differences are paired by seed, over "
        "the tasks that both sides have.\n",
        "| variant | gain | compared with | difference | | asks |",
        "|---|--:|---|--:|---|---|",
    ]
    by_task: dict[str, dict[str, Interval]] = {}
    for name, variant in config.variants.items():
        if not (mine := scores.get(name)):
            continue
        gain = Interval.of([run["overall"]["psnr_gain"] for run in mine.values()])
        against = variant.against or config.reference
        if found := differences(mine, scores.get(against, {})) if against != name else {}:
            difference = found.pop("")
            told = f"{against} | {difference} | {verdict(difference, variant.control)}"
        else:
            tasks = next(iter(mine.values()))["tasks"]
            found = {task: Interval.of([run["tasks"][task]["psnr_gain"] for run in mine.values()]) for task in tasks}
            told = "– | | "
        by_task[name] = found
        lines.append(f"| {name} | {gain} | {told} | {variant.asks} |")
    tasks = sorted({task for found in by_task.values() for task in found})
    lines += [
        "\nBy task: mean paired difference (dB); of variants that are compared with nothing, the gain.\n",
        f"| variant | {' | '.join(tasks)} |",
        f"|---|{'--:|' * len(tasks)}",
    ]
    for name, found in by_task.items():
        cells = [f"{found[task].mean:+.3f}" if task in found else "–" for task in tasks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
