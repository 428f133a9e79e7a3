"""Degradations, gt → lq of the same size; used by the sample stage and on the fly by the trainer. No torch.

Images are float32 RGB [H, W, 3] in [0, 1]. Every function draws only from the generator that it is given, so that a
(file name, seed) or (sample, epoch) pair always gets the same lq. Fields that vary over the image are shaped in its
spectrum, which costs the same for every size of streak or cloud.
"""

import inspect
import io
from collections.abc import Callable
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field
from scipy import fft

from student.data.resize import bicubic_resize, resize_as_8_bit
from student.params import Section

WHOLE = ("kspace",)
"""Kinds in which every pixel depends on all others: the trainer applies them before it crops."""
Number = float | tuple[float, float]
"""A number, or [low, high], from which one is drawn for every image."""


def _within(low: float, high: float = np.inf) -> AfterValidator:
    def check(value: Number) -> Number:
        first, last = value if isinstance(value, tuple) else (value, value)
        if not low <= first <= last <= high:
            raise ValueError(f"must lie between {low:g} and {high:g}, and a range must begin with its smaller end")
        return value

    return AfterValidator(check)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"must be one of {', '.join(KINDS)}")
    return kind


class DegradationSpec(Section):
    """One degradation; parameters that a kind does not use are ignored by it. A range is drawn from anew for every crop
    in training, and by the file's name in an evaluation."""

    kind: Annotated[str, AfterValidator(_known)]
    scale: Annotated[int, Field(ge=2)] = 4
    """`bicubic`, `kspace`: the factor of down- and up-sampling."""
    sigma: Annotated[Number, _within(0)] = 25.0
    """Noise strength on the 0-255 scale (`*_noise`)."""
    quantize: bool = True
    """`gaussian_noise`: clip to 0-255 and truncate to integers, as stored test sets do (method.md section 6)."""
    amount: Annotated[Number, _within(0, 1)] = 0.5
    """`rain`, `cloud`, `haze`: how heavy, from 0 (none) to 1."""
    quality: Annotated[Number, _within(1, 100)] = 40
    """`jpeg`: as libjpeg counts it."""
    light: Annotated[Number, _within(0, 1)] = (0.75, 1.0)
    """`haze`: brightness of the veil."""
    tone: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training crops whose clean image gets another brightness, contrast and gamma first: the network then
    learns to keep them, and not to take a pale picture for a hazy one. Evaluation leaves images as they are."""

    def toned(self, gt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clean crop to train on; any layout, values in [0, 1]."""
        if not self.tone or rng.random() >= self.tone:
            return gt
        low, high = rng.uniform(0, 0.5), rng.uniform(0.5, 1)
        return (low + (high - low) * gt ** np.float32(np.exp(rng.uniform(-0.6, 0.6)))).astype(np.float32)

    def margin(self, rng: np.random.Generator) -> int:
        """Pixels around a crop that its own depend on. A JPEG has its grid of 8 pixels anywhere under a crop."""
        return 4 * self.scale if self.kind == "bicubic" else int(rng.integers(8)) if self.kind == "jpeg" else 0


def degrade(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
    """Degrade one clean image.

    gt: float32 [H, W, 3] in [0, 1]. Returns the same shape and range. Raises ValueError for another shape.
    """
    if gt.ndim != 3 or gt.shape[2] != 3:
        raise ValueError(f"degrade: the image must be [H, W, 3], not {list(gt.shape)}")
    function, values = KINDS[spec.kind], {}
    for name in list(inspect.signature(function).parameters)[2:]:
        value = getattr(spec, name)
        values[name] = float(rng.uniform(*value)) if isinstance(value, tuple) else value
    lq = function(gt.astype(np.float32, copy=False), rng, **values)
    return np.clip(lq, 0, 1).astype(np.float32, copy=False)


def _is_gray(gt: np.ndarray) -> bool:
    return bool((gt == gt[..., :1]).all())


def _identity(gt: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return gt


def _bicubic(gt: np.ndarray, rng: np.random.Generator, scale: int) -> np.ndarray:
    height, width = gt.shape[:2]
    return bicubic_resize(resize_as_8_bit(gt, -(-height // scale), -(-width // scale)), height, width)


def _jpeg(gt: np.ndarray, rng: np.random.Generator, quality: float) -> np.ndarray:
    """Through a file and back; a colour picture with its colours at full or at half resolution."""
    from PIL import Image

    pixels, buffer = np.round(gt * 255).astype(np.uint8), io.BytesIO()
    picture = Image.fromarray(pixels[..., 0] if _is_gray(gt) else pixels)
    picture.save(buffer, "JPEG", quality=round(quality), subsampling=int(rng.choice((0, 2))))
    return np.asarray(Image.open(buffer).convert("RGB"), np.float32) / 255


def _kspace(gt: np.ndarray, rng: np.random.Generator, scale: int) -> np.ndarray:
    """Keep the central 1/scale of the frequencies of each axis: what a faster MRI scan measures."""
    planes = gt[..., :1] if _is_gray(gt) else gt
    keep_y, keep_x = (np.abs(fft.fftfreq(size, 1 / size)) <= size / scale / 2 for size in gt.shape[:2])
    spectrum = fft.fft2(planes, axes=(0, 1)) * (keep_y[:, None] & keep_x)[..., None]
    return np.broadcast_to(np.abs(fft.ifft2(spectrum, axes=(0, 1))), gt.shape)


def _gaussian_noise(gt: np.ndarray, rng: np.random.Generator, sigma: float, quantize: bool) -> np.ndarray:
    """A gray picture has one noise for its three equal channels, as its file has."""
    noise = rng.standard_normal((*gt.shape[:2], 1 if _is_gray(gt) else 3))
    noisy = gt * 255 + noise * sigma
    return np.clip(noisy, 0, 255).astype(np.uint8) / 255 if quantize else noisy / 255


def _rician_noise(gt: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise in both channels; the same for all colours (MRI is gray)."""
    real, imaginary = rng.standard_normal((2, *gt.shape[:2], 1), dtype=np.float32) * np.float32(sigma / 255)
    return np.hypot(gt + real, imaginary)


def _low_dose_noise(gt: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """CT at a lower dose: gray noise, correlated as filtered back-projection makes it, stronger in dense tissue.

    Its spectrum rises with the frequency, as the ramp filter does, up to where the reconstruction kernel ends, and
    prefers the direction in which fewer photons pass.
    """
    cutoff, direction, preference = rng.uniform(0.12, 0.5), rng.uniform(0, np.pi), rng.uniform(0, 1)

    def shape(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        along = (y * np.sin(direction) + x * np.cos(direction)) ** 2
        squared = y * y + x * x
        return squared**0.25 * np.exp(-squared / cutoff**2) * (1 + preference * along / np.maximum(squared, 1e-9))

    grain = _shaped(gt.shape[:2], shape, rng)
    return gt + grain * (sigma / 255) * (0.6 + 0.8 * gt.mean(2, keepdims=True))


def _rain(gt: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Streaks: sparse drops of unequal brightness, smeared along one slanted direction, added to the image; often some
    near and some far. At amount 0.05 to 0.5 as bright and as dense as in Rain100L (PSNR 22 to 33 dB), heavier above."""
    angle, layer = np.deg2rad(rng.normal(0, 18)), np.zeros((*gt.shape[:2], 1), np.float32)
    for share in (1.0,) if rng.random() < 0.5 else (0.6, 0.4):
        length, width = np.exp(rng.uniform(np.log(6), np.log(60))), rng.uniform(0.45, 1.2)
        lean = angle + np.deg2rad(rng.normal(0, 2))
        coverage = share * (0.03 + 0.6 * amount) * rng.uniform(0.6, 1.4)
        brightness = (0.07 + 0.3 * amount**2) * rng.uniform(0.7, 1.5)
        drops = rng.random(gt.shape[:2], dtype=np.float32) < coverage / (length * 2.5 * width)
        drops = drops * np.minimum(rng.standard_exponential(gt.shape[:2], dtype=np.float32) * brightness, 0.8)
        y, x = _frequencies(gt.shape[:2])
        along, across = y * np.cos(lean) + x * np.sin(lean), x * np.cos(lean) - y * np.sin(lean)
        smear = np.sinc(length * along) * np.exp(-2 * (np.pi * width * across) ** 2 - (length * along) ** 2 / 4)
        # The peak of a drop stays as bright as it was: a line of `length` with a Gaussian of `width` across.
        smeared = fft.irfft2(fft.rfft2(drops) * smear * (length * width * 2.5), s=gt.shape[:2])
        layer += np.maximum(smeared, 0)[..., None]
    return gt + np.minimum(layer, 0.85)


def _cloud(gt: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Patches of cloud: fractal noise as the opacity of a white veil."""
    field = _fractal(gt.shape[:2], rng.uniform(1.3, 2.0), rng)
    low = 0.55 - 0.45 * amount
    alpha = np.clip((field - low) / (1 - low), 0, 1) ** 1.2 * (0.45 + 0.45 * amount)
    return gt * (1 - alpha) + rng.uniform(0.85, 1.0) * alpha


def _haze(gt: np.ndarray, rng: np.random.Generator, amount: float, light: float) -> np.ndarray:
    """A veil over all of the image, thicker towards one side and a little uneven: haze, or a sheet of thin cloud."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in gt.shape[:2]), indexing="ij")
    direction, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.5)
    uneven = (_fractal(gt.shape[:2], 2.0, rng) - 0.5) * rng.uniform(0, 0.5)
    depth = 1 + slope * (y * np.sin(direction) + x * np.cos(direction))[..., None] + uneven
    through = np.exp(-2 * amount * np.maximum(depth, 0))
    return gt * through + np.clip(light + rng.uniform(-0.03, 0.03, 3), 0, 1) * (1 - through)


def _frequencies(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cycles a pixel along y [H, 1] and x [1, W // 2 + 1], as `rfft2` orders them."""
    return fft.fftfreq(shape[0])[:, None].astype(np.float32), fft.rfftfreq(shape[1])[None].astype(np.float32)


def _shaped(shape: tuple[int, int], gain: Callable[..., np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise [H, W, 1] of mean 0 and deviation 1 whose spectrum is `gain(y, x)` of the frequencies."""
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * gain(*_frequencies(shape))
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=shape)
    return (noise / max(float(noise.std()), 1e-9))[..., None]


def _fractal(shape: tuple[int, int], falloff: float, rng: np.random.Generator) -> np.ndarray:
    """Cloudy noise [H, W, 1] from 0 to 1; no scale is the largest, so that a crop may lie within one patch."""
    field = _shaped(shape, lambda y, x: np.maximum(y * y + x * x, 0.25 / max(shape) ** 2) ** (-falloff / 2), rng)
    return (field - field.min()) / max(float(np.ptp(field)), 1e-6)


_FUNCTIONS: tuple[Callable[..., np.ndarray], ...] = (
    _identity, _gaussian_noise, _jpeg, _bicubic, _kspace, _rician_noise, _low_dose_noise, _rain, _cloud, _haze
)  # fmt: skip
KINDS = {function.__name__.removeprefix("_"): function for function in _FUNCTIONS}
"""Name → (gt, generator, ...) → lq before it is clipped to [0, 1]. What a function asks for after the generator are
fields of `DegradationSpec`, with a number drawn where a range was given."""
