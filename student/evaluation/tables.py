"""From per-image rows to metrics.json, results.json and the CSV tables; for reading: student/evaluation/summary.py."""

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from student.evaluation.config import EvalConfig
from student.evaluation.extra_metrics import label
from student.evaluation.metrics import IDENTICAL_DB, bootstrap_interval, mean_psnr
from student.files import no_formula

KIND = ("variant", "crop_border")
"""In every row of every table: a number without them means nothing, also where rows of two files are put together."""

COLUMNS = ["dataset", "task", "domain", "image", "width", "height", *KIND]
COLUMNS += ["psnr_input", "psnr", "psnr_gain", "ssim_input", "ssim"]
PAPER = ("paper_variant", "paper_psnr", "paper_ssim", "psnr_difference", "ssim_difference")
OVERALL = ("psnr", "ssim", "psnr_input", "ssim_input", "psnr_gain")


def metrics_json(rows: list[dict], variant: str) -> dict[str, Any]:
    """Means over images per task and dataset; `overall` is the unweighted mean over tasks.

    Tasks whose inputs are all clean are left out of it: the 100 dB of such an input can only be lost.
    """
    tasks = {name: _means(group) for name, group in grouped(rows, "task").items()}
    datasets = {name: _means(group) for name, group in grouped(rows, "dataset").items()}
    restored = [tasks[name] for name in _to_restore(tasks)]
    overall = {key: _mean(task[key] for task in restored) for key in OVERALL}
    overall["n"] = sum(task["n"] for task in restored)
    return {"variant": variant, "tasks": tasks, "datasets": datasets, "overall": overall}


def results_json(rows: list[dict], metrics: dict, config: EvalConfig, model: dict) -> dict[str, Any]:
    """The full account: what was measured how, means with bootstrap 95 % intervals, the paper's numbers beside."""
    sets = {}
    for name, group in grouped(rows, "dataset").items():
        values = {**metrics["datasets"][name], "task": group[0]["task"], "domain": group[0]["domain"]}
        values["psnr_ci95"] = bootstrap_interval(np.minimum([row["psnr"] for row in group], IDENTICAL_DB))
        values["psnr_gain_ci95"] = bootstrap_interval(gains) if (gains := _gains(group)) else None
        if all(row["ssim"] is not None for row in group):
            values["ssim_ci95"] = bootstrap_interval([row["ssim"] for row in group])
        values |= _extra_means(group, config.extra_metrics)
        values["psnr_gain_least"] = min(_gains(group), default=None)
        for baseline in config.baselines:
            values[f"psnr_{baseline}"] = _mean(row[f"psnr_{baseline}"] for row in group)
        sets[name] = values
    by_task = grouped(rows, "task")
    gains = [gains for group in by_task.values() if (gains := _gains(group))]
    overall = metrics["overall"] | {"psnr_gain_ci95": bootstrap_interval(*gains) if gains else None}
    tasks = [_extra_means(by_task[name], config.extra_metrics) for name in _to_restore(metrics["tasks"])]
    for extra in config.extra_metrics:
        overall |= {key: _mean(task[key] for task in tasks) for key in (extra, f"{extra}_input")}
        overall[f"{extra}_n"] = sum(task[f"{extra}_n"] for task in tasks)
    rows_of_paper, mean, notes = beside_paper(config, metrics["datasets"])
    if kept := sorted(metrics["tasks"].keys() - _to_restore(metrics["tasks"])):
        notes.append(f"The mean over tasks is without {', '.join(kept)}: a clean input can only be kept.")
    for values, beside in [(sets[name], row) for name, row in rows_of_paper.items()] + [(overall, mean)]:
        if beside:  # under another name, so that nobody who reads `paper` takes numbers of another kind for comparable
            values["paper" if "psnr_difference" in beside else "paper_not_compared"] = beside
    return {
        "variant": config.variant,
        "crop_border": config.crop_border,
        "split": config.split,
        "setting": config.paper and config.paper.setting,
        "tile": config.tile,
        "baselines": config.baselines,
        "extra_metrics": {extra: label(extra) for extra in config.extra_metrics},
        "model": model,
        "datasets": sets,
        "tasks": metrics["tasks"],
        "overall": overall,
        "notes": notes,
    }


def beside_paper(config: EvalConfig, sets: dict[str, Any]) -> tuple[dict[str, dict], dict | None, list[str]]:
    """The paper's numbers by data set, its mean, and notes on what is not compared.

    A difference is taken only between numbers of one kind: the same variant of the metrics, no border left out, as
    many images; and of means only where all test sets of the paper are here.
    """
    paper, reasons, odd, notes = config.paper, [], [], []
    if paper is None:
        return {}, None, []
    if config.variant != paper.variant:
        need = f"set eval.variant={paper.variant}"
        reasons.append(f"is published in variant `{paper.variant}`, these are `{config.variant}`; {need}")
    if config.crop_border:
        reasons.append(f"leaves out no border, these leave out {config.crop_border} pixels; set eval.crop_border=0")
    if reasons:
        notes.append(f"No difference to the paper: {paper.setting} {', and '.join(reasons)}.")
    rows = {}
    for name, row in paper.sets.items():
        if name not in sets:
            odd.append(f"no data set is named {name}")
            continue
        if other := row.images not in (None, sets[name]["n"]):
            odd.append(f"{name} has {sets[name]['n']} images, the paper's {row.images}")
        if row.psnr is not None:
            rows[name] = _beside(sets[name], paper.variant, row.psnr, row.ssim, not (reasons or other))
    if odd:
        return rows, None, [*notes, f"The paper's mean of {paper.setting} is not compared: {'; '.join(odd)}."]
    ours: dict[str, Any] = {"n": sum(sets[name]["n"] for name in paper.sets)}
    for key in ("psnr", "ssim", "psnr_input", "ssim_input"):
        values = [sets[name][key] for name in paper.sets]
        ours[key] = None if None in values else float(np.mean(values))
    mean = {"test_sets": len(paper.sets), "ours": ours} | _beside(ours, paper.variant, *paper.mean, not reasons)
    return rows, mean, notes


def _beside(ours: dict, variant: str, psnr: float, ssim: float | None, same_kind: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"variant": variant, "psnr": psnr, "ssim": ssim}
    if same_kind:
        values["psnr_difference"] = ours["psnr"] - psnr
        if None not in (ours["ssim"], ssim):
            values["ssim_difference"] = ours["ssim"] - ssim
    return values


def per_image_csv(rows: list[dict], config: EvalConfig) -> str:
    """One line an image, also for `dvc plots`."""
    columns = COLUMNS + [name for extra in config.extra_metrics for name in (f"{extra}_input", extra)]
    kind = {key: getattr(config, key) for key in KIND}
    return _csv(columns, (kind | row | {"psnr_gain": next(iter(_gains([row])), None)} for row in rows))


def per_set_csv(results: dict) -> str:
    """One line a test set, with the paper's numbers where it has some."""
    extras = [name for extra in results["extra_metrics"] for name in (f"{extra}_input", extra, f"{extra}_n")]
    kind = {key: results[key] for key in KIND}
    lines = []
    for name, values in results["datasets"].items():
        paper = values.get("paper") or values.get("paper_not_compared") or {}
        beside = {f"paper_{key}": paper.get(key) for key in ("variant", "psnr", "ssim")}
        beside |= {key: paper.get(key) for key in ("psnr_difference", "ssim_difference")}
        lines.append(kind | {"dataset": name} | values | beside)
    return _csv(["dataset", "task", *KIND, "n", *OVERALL, *extras, *PAPER], lines)


def to_json(values: dict) -> str:
    return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def grouped(rows: list[dict], key: str) -> dict[str, list[dict]]:
    """Rows by one column, in sorted order."""
    return {name: [row for row in rows if row[key] == name] for name in sorted({row[key] for row in rows})}


def _to_restore(tasks: dict[str, dict]) -> list[str]:
    """The tasks of the overall mean: those with a degraded input, or all where there is none."""
    return [name for name, task in tasks.items() if task["psnr_gain"] is not None] or list(tasks)


def _means(rows: list[dict]) -> dict[str, float | int | None]:
    psnr, psnr_input = (mean_psnr([row[key] for row in rows]) for key in ("psnr", "psnr_input"))
    ssim, ssim_input = (_mean(row[key] for row in rows) for key in ("ssim", "ssim_input"))
    return {
        "psnr": psnr,
        "ssim": ssim,
        "psnr_input": psnr_input,
        "ssim_input": ssim_input,
        "psnr_gain": _mean(_gains(rows)),
        "n": len(rows),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are defined; SSIM is not for an image smaller than its window, nor SAM with a black pixel."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _extra_means(rows: list[dict], extras: Iterable[str]) -> dict[str, float | int | None]:
    """Means over the images where a metric is defined both for the input and for its restoration, and their number:
    two means over different images would not show what restoring did."""
    values: dict[str, float | int | None] = {}
    for extra in extras:
        both = [row for row in rows if row[extra] is not None and row[f"{extra}_input"] is not None]
        values |= {key: _mean(row[key] for row in both) for key in (extra, f"{extra}_input")}
        values[f"{extra}_n"] = len(both)
    return values


def _csv(columns: list[str], rows: Iterable[dict]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: no_formula(_rounded(value)) for key, value in row.items()})
    return out.getvalue()


def _gains(rows: list[dict]) -> list[float]:
    """In dB, of the images that were degraded: a clean input can only be kept, and its gain means nothing."""
    degraded = [row for row in rows if math.isfinite(row["psnr_input"])]
    return [min(row["psnr"], IDENTICAL_DB) - row["psnr_input"] for row in degraded]


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value
