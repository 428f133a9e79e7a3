"""The numbers of the paper, by setting and test set, to stand beside ours (arXiv 2603.01725; PSNR dB, SSIM)."""

import re
from typing import NamedTuple


class Published(NamedTuple):
    """One row of a table of the paper. `pattern` finds the test set by the dataset's name in the index."""

    label: str
    pattern: str
    psnr: float
    ssim: float


SETTINGS: dict[str, tuple[Published, ...]] = {
    "md-6t": (
        Published("DIV2K-Val x4", r"div2k|df2k|natural.*sr", 28.98, 0.8191),
        Published("Rain100L", r"rain", 39.56, 0.9865),
        Published("IXI MRI SR", r"ixi|mri", 27.88, 0.9053),
        Published("AAPM-Mayo CT", r"aapm|mayo|ct(?!.*mri)", 33.80, 0.9278),
        Published("UCMerced x4", r"ucmerced", 28.29, 0.7917),
        Published("CUHK-CR1", r"cuhk|cr1", 26.12, 0.7612),
    ),
    "natural-3t": (
        Published("SOTS-outdoor", r"sots|reside|ots", 30.99, 0.963),
        Published("Rain100L", r"rain", 39.62, 0.986),
        Published("CBSD68 σ15", r"(cbsd|bsd68).*15", 34.23, 0.937),
        Published("CBSD68 σ25", r"(cbsd|bsd68).*25", 31.58, 0.894),
        Published("CBSD68 σ50", r"(cbsd|bsd68).*50", 28.32, 0.808),
    ),
    "natural-5t": (
        Published("SOTS", r"sots|reside|ots", 30.72, 0.9622),
        Published("Rain100L", r"rain", 39.56, 0.9863),
        Published("CBSD68 σ25", r"cbsd|bsd68", 31.60, 0.8948),
        Published("GoPro", r"gopro", 29.71, 0.8887),
        Published("LOL", r"lol", 23.43, 0.8638),
    ),
    "md-7t": (),
    "md-8t": (),
    "md-9t": (),
    "cdd11": (),
}
"""Settings without rows are published by their mean alone; the recipe names its setting in `eval.setting`."""

MEANS: dict[str, tuple[float, float]] = {
    "md-6t": (30.77, 0.8653),
    "md-7t": (30.74, 0.8643),
    "md-8t": (30.74, 0.8647),
    "md-9t": (30.78, 0.8645),
    "natural-3t": (32.95, 0.918),
    "natural-5t": (31.00, 0.919),
    "cdd11": (30.88, 0.890),
}
"""Unweighted mean over the test sets."""

TEST_SETS: dict[str, int] = {
    "md-6t": 6,
    "md-7t": 7,
    "md-8t": 8,
    "md-9t": 9,
    "natural-3t": 5,
    "natural-5t": 5,
    "cdd11": 11,
}
"""How many test sets a setting's mean is over: with fewer at hand there is nothing to compare it with."""


def published(setting: str | None, dataset: str) -> Published | None:
    """The paper's row for `dataset` in `setting`, or None when the paper has none."""
    name = re.sub(r"[^a-z0-9]+", "_", dataset.lower())
    return next((row for row in SETTINGS.get(setting or "", ()) if re.search(row.pattern, name)), None)
