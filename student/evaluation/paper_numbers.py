"""The numbers of the paper, by setting and test set, to stand beside ours (arXiv 2603.01725; PSNR dB, SSIM).

A difference is taken only between numbers of one kind: the same test set, the same variant of the metrics, no border
left out. Whatever is not compared leaves a note that says why.
"""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Published(NamedTuple):
    """One test set of a setting; without numbers where the paper states the setting's mean alone.

    `pattern` finds the test set by whole words of the dataset's name in the index ("terrain" is no "rain").
    """

    label: str
    pattern: str
    psnr: float | None = None
    ssim: float | None = None


class Setting(NamedTuple):
    """A table of the paper: the variant it is measured in, the unweighted mean over its test sets, its test sets."""

    variant: str
    psnr: float
    ssim: float
    rows: tuple[Published, ...]


# Another scale, split or noise level is another test set, and has no number here.
X4 = r"(?!.*_x_?(?!4(?:_|$))\d)"
SOTS, RAIN, GOPRO = r"sots(?!.*_indoor(?:_|$))", r"rain_?100_?l", r"go_?pro"
SIGMA = r"c?bsd_?68_(?:.*_)?(?:sigma|noise|s|n)?_?"

MD_6T = (
    Published("DIV2K-Val x4", rf"(?:div2k|df2k){X4}", 28.98, 0.8191),
    Published("Rain100L", RAIN, 39.56, 0.9865),
    Published("IXI MRI SR", r"ixi", 27.88, 0.9053),
    Published("AAPM-Mayo CT", r"aapm|mayo", 33.80, 0.9278),
    Published("UCMerced x4", rf"uc_?merced{X4}", 28.29, 0.7917),
    Published("CUHK-CR1", r"(?:cuhk_)?cr_?1", 26.12, 0.7612),
)
NATURAL_3T = (
    Published("SOTS-outdoor", SOTS, 30.99, 0.963),
    Published("Rain100L", RAIN, 39.62, 0.986),
    Published("CBSD68 σ15", SIGMA + "15", 34.23, 0.937),
    Published("CBSD68 σ25", SIGMA + "25", 31.58, 0.894),
    Published("CBSD68 σ50", SIGMA + "50", 28.32, 0.808),
)
NATURAL_5T = (
    Published("SOTS", SOTS, 30.72, 0.9622),
    Published("Rain100L", RAIN, 39.56, 0.9863),
    Published("CBSD68 σ25", SIGMA + "25", 31.60, 0.8948),
    Published("GoPro", GOPRO, 29.71, 0.8887),
    Published("LOL", r"lol(?:_?v1)?(?!_?v[2-9])", 23.43, 0.8638),
)
MD_7T = (*(Published(row.label, row.pattern) for row in MD_6T), Published("GoPro", GOPRO))
MD_8T = (*MD_7T, Published("PolarStar PET", r"polar_?star"))
MD_9T = (*MD_8T, Published("RICE1", r"rice_?1"))
MIXES = "low haze rain snow low_haze low_rain low_snow haze_rain haze_snow low_haze_rain low_haze_snow".split()
CDD11 = tuple(Published(f"CDD-11 {mix}", rf"cdd_?11_{mix}(?!_(?:low|haze|rain|snow))") for mix in MIXES)

SETTINGS: dict[str, Setting] = {
    "md-6t": Setting("basicsr", 30.77, 0.8653, MD_6T),
    "md-7t": Setting("basicsr", 30.74, 0.8643, MD_7T),
    "md-8t": Setting("basicsr", 30.74, 0.8647, MD_8T),
    "md-9t": Setting("basicsr", 30.78, 0.8645, MD_9T),
    "natural-3t": Setting("promptir", 32.95, 0.918, NATURAL_3T),
    "natural-5t": Setting("promptir", 31.00, 0.919, NATURAL_5T),
    # [ours] The paper names no variant for CDD-11; promptir is that of its other natural tables.
    "cdd11": Setting("promptir", 30.88, 0.890, CDD11),
}


class Comparison(NamedTuple):
    """What stands beside ours. `psnr_difference` (and `ssim_difference`) are there only where they mean something."""

    rows: dict[str, dict[str, Any]]
    mean: dict[str, Any] | None
    notes: list[str]


def published(setting: str | None, dataset: str) -> Published | None:
    """The test set of `setting` that `dataset` is by its name, or None; a training set is no test set."""
    name = re.sub(r"[^a-z0-9]+", "_", dataset.lower()).strip("_")
    if setting is None or re.search(r"(?:^|_)train(?:ing)?(?:_|$)", name):
        return None
    rows = SETTINGS[setting].rows
    return next((row for row in rows if re.search(rf"(?:^|_)(?:{row.pattern})(?:_|$)", name)), None)


def compare(setting: str | None, variant: str, crop_border: int, sets: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Dataset → means of ours, beside the paper's `setting`."""
    if setting is None:
        return Comparison({}, None, [])
    table = SETTINGS[setting]
    found = {name: row for name in sets if (row := published(setting, name))}
    reason = _other_kind(setting, variant, crop_border)
    notes = [f"No difference to the paper: {reason}."] if reason else []
    rows = {
        name: {"test_set": row.label} | _beside(sets[name], table.variant, row.psnr, row.ssim, not reason)
        for name, row in found.items()
        if row.psnr is not None and row.ssim is not None
    }
    if odd := _not_once(table, found):
        notes.append(f"The paper's mean of {setting} is not compared: {odd}.")
        return Comparison(rows, None, notes)
    ours: dict[str, Any] = {"n": sum(sets[name]["n"] for name in found)}
    for key in ("psnr", "ssim", "psnr_input", "ssim_input"):
        values = [sets[name][key] for name in found]
        ours[key] = None if None in values else float(np.mean(values))
    mean = {"test_sets": len(found), "ours": ours} | _beside(ours, table.variant, table.psnr, table.ssim, not reason)
    return Comparison(rows, mean, notes)


def _other_kind(setting: str, variant: str, crop_border: int) -> str | None:
    """Why numbers of this evaluation are of another kind than the paper's."""
    expected, reasons = SETTINGS[setting].variant, []
    if variant != expected:
        reasons.append(f"is published in variant `{expected}`, these are `{variant}`; set eval.variant={expected}")
    if crop_border:
        reasons.append(f"leaves out no border, these leave out {crop_border} pixels; set eval.crop_border=0")
    return f"{setting} {', and '.join(reasons)}" if reasons else None


def _not_once(table: Setting, found: Mapping[str, Published]) -> str | None:
    """Which test sets of the paper are not here exactly once; a mean over others is another mean."""
    count = Counter(row.label for row in found.values())
    missing = [row.label for row in table.rows if count[row.label] == 0]
    twice = [f"{name} ({row.label})" for name, row in found.items() if count[row.label] > 1]
    parts = [f"no data set is named as {', '.join(missing)}"] * bool(missing)
    parts += [f"several are the same test set: {', '.join(twice)}"] * bool(twice)
    return "; ".join(parts) or None


def _beside(ours: Mapping[str, Any], variant: str, psnr: float, ssim: float, same_kind: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"variant": variant, "psnr": psnr, "ssim": ssim}
    if same_kind:
        values["psnr_difference"] = ours["psnr"] - psnr
        if ours["ssim"] is not None:
            values["ssim_difference"] = ours["ssim"] - ssim
    return values
