"""Further metrics by name, through torchmetrics (the optional extra `metrics`): `eval.extra_metrics`."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from student.evaluation.metrics import MetricError, as_image, cropped


class Extra(NamedTuple):
    """`function` of torchmetrics.functional.image by its name, or one of ours: restored and gt, `[1, 3, H, W]` in
    [0, 1], → a number. Defined for images whose shorter side is at least `smallest`.

    `net`: the pretrained network of torchvision that it compares features of.
    """

    function: str | Callable[[Any, Any], Any]
    smallest: int = 1
    settings: dict[str, Any] = {}
    net: str | None = None


EXTRA_METRICS = {
    "lpips": Extra("learned_perceptual_image_patch_similarity", 31, {"normalize": True, "net_type": "alex"}, "alex"),
    "dists": Extra("deep_image_structure_and_texture_similarity", net="vgg16"),
    "ms_ssim": Extra("multiscale_structural_similarity_index_measure", 176, {"data_range": 1.0}),
    "vif": Extra("visual_information_fidelity", 41),
    "sam": Extra("spectral_angle_mapper"),
    "uqi": Extra("universal_image_quality_index", 11),
    "ergas": Extra("error_relative_global_dimensionless_synthesis"),
}
NEEDS = (
    "it needs the extra `metrics` (pip install 'teachonce[metrics]') and, for lpips and dists, the torchvision of this "
    "torch's version and build, with its pretrained weights in TORCH_HOME (hub/checkpoints) or within reach"
)


def label(name: str) -> str:
    """The name as tables print it: a perceptual distance means nothing without its network."""
    net = EXTRA_METRICS[name].net
    return f"{name} ({net})" if net else name


def check_extra_metrics(names: Iterable[str]) -> None:
    """Raise `MetricError` for what would stop an evaluation at its first image: a name, a package, missing weights."""
    gray = np.full((3, 192, 192), 0.5)
    for name in names:
        if name not in EXTRA_METRICS:
            raise MetricError(f"unknown metric '{name}'; choose from {', '.join(EXTRA_METRICS)}")
        extra_metric(name, gray, gray)


def extra_metric(name: str, restored: Any, gt: Any, crop_border: int = 0) -> float | None:
    """The metric `name` on images as `psnr` takes them, without a border of `crop_border` pixels.

    None where it is not defined: an image that is too small for it, the angle `sam` to a black pixel. Raises
    `MetricError` as `check_extra_metrics` does.
    """
    import torch

    extra = EXTRA_METRICS[name]
    pair = cropped(as_image(restored), as_image(gt), crop_border)
    if min(pair[1].shape[1:]) < extra.smallest:
        return None
    tensors = [torch.from_numpy(image.clip(0, 1)).float()[None] for image in pair]
    try:
        if extra.net:
            import torchvision  # noqa: F401  # torchmetrics would ask for it in words of its own
        function = extra.function
        if isinstance(function, str):
            from torchmetrics.functional import image

            function = getattr(image, function)
        value = float(function(*tensors, **extra.settings))
    except Exception as error:  # also the import: RuntimeError for a torchvision that was built for another torch
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MetricError(f"metric '{label(name)}': {reason}; {NEEDS}") from error
    return value if np.isfinite(value) else None
