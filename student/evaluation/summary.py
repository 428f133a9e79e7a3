"""The evaluation to read: table.md and the one line at the end."""

from typing import Any

from student.evaluation.baselines import LABELS


def markdown(results: dict) -> str:
    """The table that people paste into a paper or an issue; every number carries its variant in the caption."""
    sets, overall, extras = results["datasets"], results["overall"], results["extra_metrics"]
    paper = any(_paper(values) for values in [*sets.values(), overall])
    heads = ["task", "test set", "images", "input", "restored", "gain", *extras.values()]
    heads += ["paper", "difference"] * paper
    rows = []
    for name, values in sets.items():
        rows.append([values["task"], name, *_cells(values, extras), *(_against(_paper(values)) * paper)])
    rows.append(["**mean over tasks**", "", *_cells(overall, extras), *([""] * 2 * paper)])
    if mean := _paper(overall):
        # The paper's mean is over its test sets; ours over tasks is another number wherever a task has several sets.
        blank = [""] * (1 + len(extras))
        ours = [str(mean["ours"]["n"]), _pair(mean["ours"], "_input"), _pair(mean["ours"]), *blank]
        rows.append([f"**mean over the paper's {mean['test_sets']} test sets**", "", *ours, *_against(mean)])
    lines = [_caption(results), "", _line(heads), "|---|---|" + "--:|" * (len(heads) - 2), *map(_line, rows)]
    for note in results["notes"]:
        lines += ["", note]
    return "\n".join([*lines, *_beside(results), ""])


def _beside(results: dict) -> list[str]:
    """The second table: the student beside simple methods, with the least gain of any image. **Bold**: the best."""
    names = results["baselines"]
    if not names:
        return []
    heads = ["test set", "input", "student", "least gain of an image", *(LABELS.get(name, name) for name in names)]
    lines = [
        "",
        f"PSNR (dB, `{results['variant']}`) beside simple methods, measured in the same run. Bold: the best.",
        "",
    ]
    lines += [_line(heads), "|---|" + "--:|" * (len(heads) - 1)]
    for name, values in results["datasets"].items():
        numbers = [values["psnr_input"], values["psnr"], *(values[f"psnr_{baseline}"] for baseline in names)]
        best = max(number for number in numbers if number is not None)
        cells = ["–" if n is None else f"**{n:.2f}**" if n == best else f"{n:.2f}" for n in numbers]
        least = values["psnr_gain_least"]
        lines.append(_line([name, *cells[:2], "–" if least is None else f"{least:+.2f}", *cells[2:]]))
    return lines


def summary(metrics: dict, split: str, interval: tuple[float, float] | None, seconds: float, where: str) -> str:
    """The one line at the end."""
    overall, tasks = metrics["overall"], metrics["tasks"]
    images, plural = sum(task["n"] for task in tasks.values()), "s" * (len(tasks) > 1)
    gained = {name: values["psnr_gain"] for name, values in tasks.items() if values["psnr_gain"] is not None}
    worst = min(gained, key=gained.get, default=None)
    least = f"; least: {worst} {gained[worst]:+.2f} dB" if worst else ""
    gain = f", mean gain {overall['psnr_gain']:+.2f} dB [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else ""
    ssim = "" if overall["ssim"] is None else f" / {overall['ssim']:.4f}"
    return (
        f"evaluated {images} images of {len(tasks)} task{plural} ({split}, {metrics['variant']}): "
        f"{overall['psnr']:.2f} dB{ssim}{gain}{least}; "
        f"{seconds:.0f} s → {where}"
    )


def _caption(results: dict) -> str:
    border = f", border of {results['crop_border']} pixels left out" if results["crop_border"] else ""
    text = (
        f"PSNR (dB) / SSIM, variant `{results['variant']}`{border}, split `{results['split']}`, model "
        f"`{results['model']['name']}`. Means over images; brackets: bootstrap 95 % interval of the gain."
    )
    if names := results["extra_metrics"].values():
        text += f" {', '.join(names)}: input → restored, over n of m images where it is not defined for all."
    if results["setting"]:
        text += f" Paper: {results['setting']}."
    return text


def _cells(values: dict, extras: dict[str, str]) -> list[str]:
    gain = "clean: to be kept"
    if interval := values["psnr_gain_ci95"]:
        gain = f"{values['psnr_gain']:+.2f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return [str(values["n"]), _pair(values, "_input"), _pair(values), gain, *(_extra(values, name) for name in extras)]


def _extra(values: dict, name: str) -> str:
    count = "" if values[f"{name}_n"] == values["n"] else f" ({values[f'{name}_n']} of {values['n']})"
    return f"{_number(values[f'{name}_input'])} → {_number(values[name])}{count}"


def _pair(values: dict, suffix: str = "") -> str:
    return f"{values['psnr' + suffix]:.2f} / {_number(values['ssim' + suffix])}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _paper(values: dict) -> dict[str, Any] | None:
    return values.get("paper") or values.get("paper_not_compared")


def _against(paper: dict | None) -> list[str]:
    """The paper's numbers and the difference, blank where there is none to take."""
    if paper is None:
        return ["", ""]
    ssim = f" / {paper['ssim_difference']:+.4f}" if "ssim_difference" in paper else ""
    difference = f"{paper['psnr_difference']:+.2f}{ssim}" if "psnr_difference" in paper else ""
    return [f"{paper['psnr']:.2f} / {paper['ssim']:.4f}", difference]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
