"""Further metrics by name, through torchmetrics (the optional extra `metrics`): `eval.extra_metrics`."""

from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from student.evaluation.metrics import MetricError, as_image, cropped


class Extra(NamedTuple):
    """`function` of torchmetrics.functional.image; defined for images whose shorter side is at least `smallest`.

    `net`: the pretrained network that it compares features of; `weights`: their name in torchvision.models.
    """

    function: str
    smallest: int = 1
    settings: dict[str, Any] = {}
    net: str | None = None
    weights: str | None = None


EXTRA_METRICS = {
    "lpips": Extra(
        "learned_perceptual_image_patch_similarity",
        31,
        {"normalize": True, "net_type": "alex"},
        "alex",
        "AlexNet_Weights",
    ),
    "dists": Extra("deep_image_structure_and_texture_similarity", net="vgg16", weights="VGG16_Weights"),
    "ms_ssim": Extra("multiscale_structural_similarity_index_measure", 176, {"data_range": 1.0}),
    "vif": Extra("visual_information_fidelity", 41),
    "sam": Extra("spectral_angle_mapper"),
    "uqi": Extra("universal_image_quality_index", 11),
    "ergas": Extra("error_relative_global_dimensionless_synthesis"),
}


def label(name: str) -> str:
    """The name as tables print it: a perceptual distance means nothing without its network."""
    net = EXTRA_METRICS[name].net
    return f"{name} ({net})" if net else name


def check_extra_metrics(names: Iterable[str]) -> None:
    """Raise `MetricError` for what would stop an evaluation at its first image: a name, a package, missing weights."""
    for name in names:
        if name not in EXTRA_METRICS:
            raise MetricError(f"unknown metric '{name}'; choose from {', '.join(EXTRA_METRICS)}")
        _functional(name)
        if EXTRA_METRICS[name].net:
            _check_network(name)


def extra_metric(name: str, restored: Any, gt: Any, crop_border: int = 0) -> float | None:
    """The metric `name` on images as `psnr` takes them, without a border of `crop_border` pixels.

    None where it is not defined: an image that is too small for it, the angle `sam` to a black pixel. Raises
    `MetricError` as `check_extra_metrics` does.
    """
    import torch

    if name not in EXTRA_METRICS:
        check_extra_metrics([name])
    extra, functional = EXTRA_METRICS[name], _functional(name)
    pair = cropped(as_image(restored), as_image(gt), crop_border)
    if min(pair[1].shape[1:]) < extra.smallest:
        return None
    if extra.net:
        _check_network(name)
    tensors = [torch.from_numpy(image.clip(0, 1)).float()[None] for image in pair]
    try:
        value = float(getattr(functional, extra.function)(*tensors, **extra.settings))
    except Exception as error:
        raise MetricError(f"metric '{name}': {_reason(error)}") from error
    return value if np.isfinite(value) else None


def torchvision_command(again: bool = False) -> str:
    """What installs the torchvision of this torch and of its build: any other fails to import, or replaces torch.

    `again`: in place of one whose version alone is right.
    """
    number, _, build = version("torch").partition("+")
    _, minor, patch = number.split(".")[:3]
    # torch 2.x.y and torchvision 0.(x+15).y are released together.
    force = "--force-reinstall --no-deps " * again
    command = f"pip install {force}torchvision==0.{int(minor) + 15}.{patch}"
    return f"{command}+{build}, from the index of this torch" if build else command


def _functional(name: str) -> Any:
    try:
        if find_spec("torchvision"):  # torchmetrics imports it where it is, for every metric
            import torchvision  # noqa: F401
    except Exception as error:  # RuntimeError for one that was built for another torch
        why = f"metric '{name}': the installed torchvision cannot be imported ({_reason(error)})"
        raise MetricError(f"{why}: {torchvision_command(again=True)}") from None
    try:
        from torchmetrics.functional import image
    except ImportError as error:
        raise MetricError(f"metric '{name}' needs torchmetrics ({error}): pip install 'teachonce[metrics]'") from None
    return image


def _check_network(name: str) -> None:
    """torchvision and the pretrained weights are there, or can be fetched."""
    import torch

    try:
        from torchvision import models
    except ImportError as error:
        why = f"metric '{name}' needs torchvision ({_reason(error)})"
        raise MetricError(f"{why}: {torchvision_command()}") from None
    weights = getattr(models, EXTRA_METRICS[name].weights).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rpartition("/")[2]
    if file.exists():
        return
    try:
        weights.get_state_dict(progress=False)
    except Exception as error:
        why = f"metric '{label(name)}' needs {file}, which could not be fetched ({_reason(error)})"
        remedy = f"put {weights.url} there, or set TORCH_HOME to a folder with it in hub/checkpoints"
        raise MetricError(f"{why}; {remedy}") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
