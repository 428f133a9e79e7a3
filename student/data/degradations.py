"""Degradations, gt → lq of the same size; used by the sample stage and on the fly by the trainer. No torch.

Images are float32 RGB [H, W, 3] in [0, 1]. Every function draws only from the generator that it is given, so that a
(file name, seed) or (sample, epoch) pair always gets the same lq.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy import ndimage

from student.params import Section

Kind = Literal["gaussian_noise", "bicubic", "kspace", "rician_noise", "low_dose_noise", "rain", "cloud"]


class DegradationSpec(Section):
    """One degradation; parameters that a kind does not use are ignored by it."""

    kind: Kind
    scale: Annotated[int, Field(ge=2)] = 4
    """`bicubic`, `kspace`: the factor of down- and up-sampling."""
    sigma: Annotated[float, Field(ge=0)] = 25.0
    """Noise strength on the 0-255 scale (`*_noise`)."""
    quantize: bool = True
    """`gaussian_noise`: clip to 0-255 and truncate to integers, as stored test sets do (method.md section 6)."""
    amount: Annotated[float, Field(ge=0, le=1)] = 0.5
    """`rain`, `cloud`: how heavy, from 0 (none) to 1."""


def degrade(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    """Degrade one clean image.

    gt: float32 [H, W, 3] in [0, 1]. Returns the same shape and range. Raises ValueError for another shape.
    """
    if gt.ndim != 3 or gt.shape[2] != 3:
        raise ValueError(f"degrade: the image must be [H, W, 3], not {list(gt.shape)}")
    lq = _KINDS[spec.kind](gt.astype(np.float32), spec, rng)
    return np.clip(lq, 0, 1).astype(np.float32)


def bicubic_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """MATLAB's `imresize(image, [height width], "bicubic")`: a = -0.5, antialiased when shrinking, mirrored borders."""
    rows, columns = _bicubic_weights(image.shape[0], height), _bicubic_weights(image.shape[1], width)
    half = np.tensordot(rows, image, axes=(1, 0))  # [height, W, C]
    return np.tensordot(half, columns, axes=(1, 1)).transpose(0, 2, 1).astype(np.float32)


def _bicubic_weights(size_in: int, size_out: int) -> np.ndarray:
    """Weights [size_out, size_in] of one axis."""
    scale = size_out / size_in
    widen = min(scale, 1.0)  # the kernel is stretched when shrinking: that is the antialiasing
    centres = (np.arange(size_out) + 0.5) / scale - 0.5
    reach = int(np.ceil(2 / widen)) + 1
    taps = np.floor(centres)[:, None].astype(int) + np.arange(-reach, reach + 1)
    x = np.abs((taps - centres[:, None]) * widen)
    weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0.0))
    weights /= weights.sum(1, keepdims=True)
    mirrored = np.mod(taps, 2 * size_in)
    mirrored = np.where(mirrored < size_in, mirrored, 2 * size_in - 1 - mirrored)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], mirrored), weights)
    return matrix


def _bicubic(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    height, width = gt.shape[:2]
    small = bicubic_resize(gt, -(-height // spec.scale), -(-width // spec.scale))
    return bicubic_resize(np.round(np.clip(small, 0, 1) * 255) / 255, height, width)


def _kspace(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    """Keep the central 1/scale of the frequencies of each axis: what a faster MRI scan measures."""
    spectrum = np.fft.fftshift(np.fft.fft2(gt, axes=(0, 1)), axes=(0, 1))
    for axis in (0, 1):
        size = gt.shape[axis]
        keep = np.abs(np.arange(size) - size // 2) <= size / spec.scale / 2
        spectrum *= keep.reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
    return np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(0, 1)), axes=(0, 1)))


def _gaussian_noise(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    noisy = gt * 255 + rng.standard_normal(gt.shape) * spec.sigma
    return np.clip(noisy, 0, 255).astype(np.uint8) / 255 if spec.quantize else noisy / 255


def _rician_noise(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise in both channels; the same for all colours (MRI is gray)."""
    real, imaginary = rng.standard_normal((2, *gt.shape[:2], 1)) * (spec.sigma / 255)
    return np.hypot(gt + real, imaginary)


def _low_dose_noise(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    """CT at a lower dose: gray noise, correlated by the reconstruction filter, stronger in dense tissue."""
    grain = ndimage.gaussian_filter(rng.standard_normal(gt.shape[:2]), 0.6)
    grain *= spec.sigma / 255 / grain.std()
    return gt + grain[..., None] * (0.6 + 0.8 * gt.mean(2, keepdims=True))


def _rain(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    """Streaks: sparse drops, smeared along one slanted direction, screened over the image."""
    height, width = gt.shape[:2]
    length = int(rng.integers(9, 19))
    angle = np.deg2rad(rng.uniform(-25, 25))
    streak = np.zeros((length * 2 + 1,) * 2)
    for t in np.linspace(-length, length, 4 * length + 1):
        streak[round(length + t * np.cos(angle)), round(length + t * np.sin(angle))] = 1
    streak = ndimage.gaussian_filter(streak, 0.6)
    drops = (rng.random((height, width)) < 0.001 + 0.005 * spec.amount) * rng.uniform(0.4, 1.0, (height, width))
    layer = ndimage.convolve(drops, streak / streak.max(), mode="wrap")
    alpha = np.clip(layer, 0, 1)[..., None] * (0.3 + 0.5 * spec.amount)
    return gt + alpha * (0.92 - gt) * (gt < 0.92)


def _cloud(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    """Thin cloud: fractal noise as the opacity of a white veil."""
    height, width = gt.shape[:2]
    field = np.zeros((height, width))
    for octave in range(2, 6):
        cells = rng.random((2**octave + 3,) * 2)
        zoomed = ndimage.zoom(cells, (height / (2**octave), width / (2**octave)), order=3, mode="nearest")
        field += zoomed[:height, :width] / 2**octave
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
    low = 0.55 - 0.45 * spec.amount
    alpha = np.clip((field - low) / (1 - low), 0, 1)[..., None] ** 1.2 * (0.45 + 0.45 * spec.amount)
    return gt * (1 - alpha) + 0.95 * alpha


_KINDS = {
    "gaussian_noise": _gaussian_noise,
    "bicubic": _bicubic,
    "kspace": _kspace,
    "rician_noise": _rician_noise,
    "low_dose_noise": _low_dose_noise,
    "rain": _rain,
    "cloud": _cloud,
}
