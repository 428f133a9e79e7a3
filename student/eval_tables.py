"""From per-image rows to metrics.json, tables (JSON, CSV, Markdown) and the summary line."""

import csv
import io
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from student.metrics import IDENTICAL_DB, bootstrap_interval, mean_psnr
from student.paper import MEANS, TEST_SETS, published

COLUMNS = "dataset task domain image width height psnr_input psnr psnr_gain ssim_input ssim".split()
OVERALL = ("psnr", "ssim", "psnr_input", "ssim_input", "psnr_gain")


def metrics_json(rows: list[dict], variant: str) -> dict[str, Any]:
    """artifacts/metrics.json: means over images per task and dataset; `overall` is the unweighted mean over tasks."""
    tasks = {name: _means(group) for name, group in grouped(rows, "task").items()}
    datasets = {name: _means(group) for name, group in grouped(rows, "dataset").items()}
    overall = {key: _mean(task[key] for task in tasks.values()) for key in OVERALL}
    overall["n"] = len(rows)
    return {"variant": variant, "tasks": tasks, "datasets": datasets, "overall": overall}


def results_json(rows: list[dict], metrics: dict, config: Any, model: dict) -> dict[str, Any]:
    """The full account: what was measured how, means with bootstrap 95 % intervals, the paper's numbers beside."""
    sets = {}
    for name, group in grouped(rows, "dataset").items():
        values = {**metrics["datasets"][name], "task": group[0]["task"], "domain": group[0]["domain"]}
        values["psnr_ci95"] = bootstrap_interval(np.minimum([row["psnr"] for row in group], IDENTICAL_DB))
        values["psnr_gain_ci95"] = bootstrap_interval(_gains(group))
        if all(row["ssim"] is not None for row in group):
            values["ssim_ci95"] = bootstrap_interval([row["ssim"] for row in group])
        for extra in config.extra_metrics:
            values[extra] = _mean(row[extra] for row in group)
            values[f"{extra}_n"] = sum(row[extra] is not None for row in group)
            values[f"{extra}_input"] = _mean(row[f"{extra}_input"] for row in group)
        if paper := published(config.setting, name):
            values["paper"] = {"test_set": paper.label, "psnr": paper.psnr, "ssim": paper.ssim}
            values["paper"] |= {"psnr_difference": values["psnr"] - paper.psnr}
            if values["ssim"] is not None:
                values["paper"] |= {"ssim_difference": values["ssim"] - paper.ssim}
        sets[name] = values
    gains = [_gains(group) for group in grouped(rows, "task").values()]
    overall = metrics["overall"] | {"psnr_gain_ci95": bootstrap_interval(*gains)}
    if config.setting and len(sets) == TEST_SETS[config.setting]:
        psnr, ssim = MEANS[config.setting]
        mean = _mean(values["psnr"] for values in sets.values())
        overall["paper"] = {"psnr": psnr, "ssim": ssim, "psnr_difference": mean - psnr}
    about = {"variant": config.variant, "crop_border": config.crop_border, "split": config.split}
    return about | {
        "setting": config.setting,
        "tile": config.tile,
        "model": model,
        "datasets": sets,
        "overall": overall,
    }


def markdown(results: dict) -> str:
    """The table that people paste into a paper or an issue; every number carries its variant in the caption."""
    paper = any("paper" in values for values in results["datasets"].values())
    border = f", border of {results['crop_border']} pixels left out" if results["crop_border"] else ""
    lines = [
        f"PSNR (dB) / SSIM, variant `{results['variant']}`{border}, split `{results['split']}`, model "
        f"`{results['model']['name']}`. Means over images; brackets: bootstrap 95 % interval of the gain.",
        "",
        "| task | test set | images | input | restored | gain |" + (" paper | difference |" if paper else ""),
        "|---|---|--:|--:|--:|--:|" + ("--:|--:|" if paper else ""),
    ]
    for name, values in results["datasets"].items():
        cells = [values["task"], name, str(values["n"]), _pair(values, "_input"), _pair(values), _gain(values)]
        if paper:
            cells += _against(values.get("paper"))
        lines.append(f"| {' | '.join(cells)} |")
    overall = results["overall"]
    cells = ["**mean over tasks**", "", str(overall["n"]), _pair(overall, "_input"), _pair(overall), _gain(overall)]
    if paper:
        cells += _against(overall.get("paper"))
    return "\n".join([*lines, f"| {' | '.join(cells)} |", ""])


def per_image_csv(rows: list[dict], extras: Iterable[str] = ()) -> str:
    """One line an image, also for `dvc plots`."""
    columns = COLUMNS + [name for extra in extras for name in (f"{extra}_input", extra)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        gain = _gains([row])[0]
        writer.writerow({key: _rounded(value) for key, value in (row | {"psnr_gain": gain}).items()})
    return out.getvalue()


def per_set_csv(results: dict) -> str:
    """One line a test set."""
    columns = ["dataset", "task", "n", *OVERALL]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, values in results["datasets"].items():
        writer.writerow({key: _rounded(value) for key, value in ({"dataset": name} | values).items()})
    return out.getvalue()


def summary(metrics: dict, split: str, interval: tuple[float, float], seconds: float, where: str) -> str:
    """The one line at the end."""
    overall, tasks = metrics["overall"], metrics["tasks"]
    plural = "s" * (len(tasks) > 1)
    worst = min(tasks, key=lambda name: tasks[name]["psnr_gain"])
    ssim = "" if overall["ssim"] is None else f" / {overall['ssim']:.4f}"
    return (
        f"evaluated {overall['n']} images of {len(tasks)} task{plural} ({split}, {metrics['variant']}): "
        f"{overall['psnr']:.2f} dB{ssim}, mean gain {overall['psnr_gain']:+.2f} dB "
        f"[{interval[0]:+.2f}, {interval[1]:+.2f}]; least: {worst} {tasks[worst]['psnr_gain']:+.2f} dB; "
        f"{seconds:.0f} s → {where}"
    )


def to_json(values: dict) -> str:
    return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def grouped(rows: list[dict], key: str) -> dict[str, list[dict]]:
    """Rows by one column, in sorted order."""
    return {name: [row for row in rows if row[key] == name] for name in sorted({row[key] for row in rows})}


def _means(rows: list[dict]) -> dict[str, float | int | None]:
    psnr, psnr_input = (mean_psnr([row[key] for row in rows]) for key in ("psnr", "psnr_input"))
    ssim, ssim_input = (_mean(row[key] for row in rows) for key in ("ssim", "ssim_input"))
    return {
        "psnr": psnr,
        "ssim": ssim,
        "psnr_input": psnr_input,
        "ssim_input": ssim_input,
        "psnr_gain": psnr - psnr_input,
        "n": len(rows),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of those that are defined; SSIM is not for an image smaller than its window, nor SAM with a black pixel."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _gains(rows: list[dict]) -> list[float]:
    return [min(row["psnr"], IDENTICAL_DB) - min(row["psnr_input"], IDENTICAL_DB) for row in rows]


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) and math.isfinite(value) else value


def _pair(values: dict, suffix: str = "") -> str:
    psnr, ssim = values["psnr" + suffix], values["ssim" + suffix]
    return f"{psnr:.2f} / {'–' if ssim is None else f'{ssim:.4f}'}"


def _gain(values: dict) -> str:
    low, high = values["psnr_gain_ci95"]
    return f"{values['psnr_gain']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _against(paper: dict | None) -> list[str]:
    if paper is None:
        return ["", ""]
    ssim = f" / {paper['ssim_difference']:+.4f}" if "ssim_difference" in paper else ""
    return [f"{paper['psnr']:.2f} / {paper['ssim']:.4f}", f"{paper['psnr_difference']:+.2f}{ssim}"]
