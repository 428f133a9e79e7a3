"""Simple methods measured beside the student in the same run, so that a table shows what the network is worth.

None of them is told the noise: each estimates it from the image, as the student has to. Images are [3, H, W] float32.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from student.data.degradations import DegradationSpec
from student.data.resize import bicubic_resize, resize_as_8_bit

BACK_PROJECTIONS = 10


def _channels_last(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(1, 2, 0))


def _sigma(image: np.ndarray) -> float:
    """Standard deviation of the noise, by the wavelet estimate of scikit-image: mean over the channels, of which it
    calls one without detail nan."""
    from skimage.restoration import estimate_sigma

    return float(np.nan_to_num(estimate_sigma(image, channel_axis=-1)).mean())


def total_variation(lq: np.ndarray, gt: np.ndarray, spec: DegradationSpec | None) -> np.ndarray:
    """Chambolle's algorithm; weight 0.9 sigma did best over sigma 15 to 50 on photographs."""
    from skimage.restoration import denoise_tv_chambolle

    image = _channels_last(lq)
    return denoise_tv_chambolle(image, weight=max(0.9 * _sigma(image), 1e-4), channel_axis=-1).transpose(2, 0, 1)


def non_local_means(lq: np.ndarray, gt: np.ndarray, spec: DegradationSpec | None) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    image, sigma = _channels_last(lq), _sigma(_channels_last(lq))
    options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": -1}
    return denoise_nl_means(image, h=max(0.6 * sigma, 1e-4), sigma=sigma, **options).transpose(2, 0, 1)


def bm3d(lq: np.ndarray, gt: np.ndarray, spec: DegradationSpec | None) -> np.ndarray:
    import bm3d as package

    image = _channels_last(lq)
    sigma = max(_sigma(image), 1e-3)
    gray = np.array_equal(lq[0], lq[1]) and np.array_equal(lq[0], lq[2])
    if gray:
        return np.broadcast_to(package.bm3d(image[..., 0].astype(np.float64), sigma)[None], lq.shape)
    return package.bm3d_rgb(image.astype(np.float64), sigma).transpose(2, 0, 1)


def _small(gt: np.ndarray, scale: int) -> np.ndarray:
    """The low-resolution image that the input was enlarged from."""
    height, width = gt.shape[1:]
    return resize_as_8_bit(_channels_last(gt), -(-height // scale), -(-width // scale))


def lanczos(lq: np.ndarray, gt: np.ndarray, spec: DegradationSpec) -> np.ndarray:
    from PIL import Image

    small, size = _small(gt, spec.scale), (lq.shape[2], lq.shape[1])
    planes = [Image.fromarray(small[..., channel]) for channel in range(3)]
    return np.stack([np.asarray(plane.resize(size, Image.Resampling.LANCZOS)) for plane in planes])


def back_projection(lq: np.ndarray, gt: np.ndarray, spec: DegradationSpec) -> np.ndarray:
    """Iterative back-projection (Irani and Peleg 1991): what the small image misses of the result is added to it."""
    small, restored = _small(gt, spec.scale), _channels_last(lq)
    for _ in range(BACK_PROJECTIONS):
        missed = small - bicubic_resize(restored, *small.shape[:2])
        restored = restored + bicubic_resize(missed, *restored.shape[:2])
    return restored.transpose(2, 0, 1)


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray, Any], np.ndarray]] = {
    "tv": total_variation,
    "nlm": non_local_means,
    "bm3d": bm3d,
    "lanczos": lanczos,
    "back_projection": back_projection,
}
LABELS = {"tv": "total variation", "nlm": "non-local means", "bm3d": "BM3D", "back_projection": "back-projection"}
ENLARGED_ONLY = ("lanczos", "back_projection")
"""Baselines of super-resolution: they take the small image, so they go with `degradation: {kind: bicubic}` alone."""


def missing_package(name: str) -> str | None:
    """What to install for this baseline, or None."""
    return "pip install bm3d (for research only)" if name == "bm3d" and find_spec("bm3d") is None else None


def applies(name: str, spec: DegradationSpec | None) -> bool:
    """Whether a baseline is for this kind of input: two are for enlarged images, the others for all but those."""
    enlarged = spec is not None and spec.kind == "bicubic"
    return enlarged if name in ENLARGED_ONLY else not enlarged and (spec is None or spec.kind != "identity")
