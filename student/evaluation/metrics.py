"""PSNR and SSIM in the variants of the published tables: a number without its variant means nothing.

The same pair of images scores SSIM 0.774, 0.824 or 0.881 depending on the code base that measures it, so every
function here takes a variant by name and every file that `student.eval` writes repeats it.

`basicsr`     the multi-domain tables: clipped to [0, 1], times 255, rounded to uint8; Gaussian 11x11 SSIM.
`basicsr_y`   the same on the luma of the rounded image, 65.481 R + 128.553 G + 24.966 B + 16, itself not rounded.
`promptir`    the 3T and 5T natural tables: clipped, not rounded; uniform 7x7 SSIM with sample covariance; images are
              centre-cropped to a multiple of 16 first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

VARIANTS = ("basicsr", "basicsr_y", "promptir")

IDENTICAL_DB = 100.0
"""[ours] What an infinite PSNR (identical images) counts as in a mean, which would otherwise be infinite for ever."""

LUMA = np.array([65.481, 128.553, 24.966])
SMALLEST_SSIM = {"basicsr": 11, "basicsr_y": 11, "promptir": 16}


class MetricError(ValueError):
    """The two images cannot be compared; the message says why."""


def centre_crop(image: Any) -> Any:
    """Crop `[..., H, W]` about its centre to multiples of 16, as the 3T and 5T tables do before restoring.

    An odd margin leaves its extra row at the bottom and its extra column at the right. Raises `MetricError` when a
    side is shorter than 16.
    """
    height, width = image.shape[-2:]
    if min(height, width) < 16:
        raise MetricError(f"{width}x{height} is smaller than 16 pixels, to whose multiple this variant crops")
    top, left = height % 16 // 2, width % 16 // 2
    return image[..., top : top + height // 16 * 16, left : left + width // 16 * 16]


def psnr(restored: Any, gt: Any, variant: str = "basicsr", crop_border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels; infinite for identical images.

    `restored`, `gt`: one image each, `[3, H, W]` (or `[1, 3, H, W]`), RGB in [0, 1], array or tensor. `crop_border`
    removes that many pixels at every side first. Raises `MetricError` for unequal shapes or an unknown variant.
    """
    restored, gt, peak = _prepare(restored, gt, variant, crop_border)
    error = float(np.mean((restored - gt) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim(restored: Any, gt: Any, variant: str = "basicsr", crop_border: int = 0) -> float:
    """Structural similarity, mean over pixels and channels. Arguments and errors as `psnr`.

    Raises `MetricError` too for an image smaller than the variant's window (11 or, cropped, 16 pixels).
    """
    from skimage.metrics import structural_similarity

    restored, gt, peak = _prepare(restored, gt, variant, crop_border)
    height, width = gt.shape[-2:]
    if min(height, width) < SMALLEST_SSIM[variant]:
        raise MetricError(f"{width}x{height} is smaller than the {SMALLEST_SSIM[variant]} pixels that SSIM needs")
    # skimage's Gaussian (truncated at 3.5 sigma: 11 taps) and its crop of 5 pixels are BasicSR's to six decimals.
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    settings = {} if variant == "promptir" else gaussian
    return float(structural_similarity(restored, gt, data_range=peak, channel_axis=0, **settings))


def mean_psnr(values: Sequence[float]) -> float:
    """Mean of per-image PSNR values, infinite ones counted as `IDENTICAL_DB`."""
    return float(np.mean(np.minimum(values, IDENTICAL_DB)))


def bootstrap_interval(*groups: Sequence[float]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over images (Efron 1979), seeded: equal values, equal intervals.

    Images are what is resampled: the interval says how far the mean would move with other images of the same kind,
    not how far another training run would move it. Several groups (tasks): the unweighted mean of the groups' means,
    resampled within each group.
    """
    means = np.mean([_resampled_means(np.asarray(group, np.float64), i) for i, group in enumerate(groups)], 0)
    low, high = np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Of 10,000 draws, 500 at a time: so a set of 10,000 images needs no 800 MB."""
    generator, shape = np.random.default_rng(seed), (500, len(values))
    return np.concatenate([values[generator.integers(0, len(values), shape)].mean(1) for _ in range(20)])


def as_image(image: Any) -> np.ndarray:
    """`image` as a float64 array `[C, H, W]`."""
    if hasattr(image, "detach"):
        image = image.detach().cpu().double().numpy()
    image = np.asarray(image, dtype=np.float64)
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3:
        raise MetricError(f"expected one RGB image [3, H, W], not {list(image.shape)}")
    return image


def cropped(restored: np.ndarray, gt: np.ndarray, crop_border: int) -> tuple[np.ndarray, np.ndarray]:
    """Two comparable images `[C, H, W]` without a border of `crop_border` pixels."""
    if restored.shape != gt.shape:
        sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (restored, gt)]
        raise MetricError(f"restored is {sizes[0]} but gt is {sizes[1]}")
    if not np.isfinite(restored).all():
        raise MetricError("restored has pixels that are not finite")
    if not crop_border:
        return restored, gt
    inner = slice(crop_border, -crop_border)
    restored, gt = restored[:, inner, inner], gt[:, inner, inner]
    if restored.size == 0:
        raise MetricError(f"nothing is left after cropping a border of {crop_border} pixels")
    return restored, gt


def _prepare(restored: Any, gt: Any, variant: str, crop_border: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Both images as the variant compares them, and its peak value."""
    if variant not in VARIANTS:
        raise MetricError(f"unknown metric variant '{variant}'; choose from {', '.join(VARIANTS)}")
    restored, gt = as_image(restored), as_image(gt)
    restored, gt = (image.clip(0, 1) for image in cropped(restored, gt, crop_border))
    if variant == "promptir":
        return centre_crop(restored), centre_crop(gt), 1.0
    restored, gt = (np.round(image * 255) for image in (restored, gt))
    if variant == "basicsr_y":
        restored, gt = (np.tensordot(LUMA / 255, image, axes=1)[None] + 16 for image in (restored, gt))
    return restored, gt, 255.0
