"""Samples of any type as colours for the network, and back as the same type; what is no colour is put aside."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Samples:
    """What a picture's samples are beside the colours that the network sees."""

    gray: bool
    dtype: np.dtype
    low: float
    """What is 0 for the network."""
    high: float
    """What is 1."""
    extra: np.ndarray | None
    """The 2nd or 4th band `[H, W, 1]`, untouched: alpha, mostly."""
    gaps: tuple[np.ndarray, np.ndarray] | None
    """Which samples are no data or not finite (`[H, W, C]` bool), and those samples."""

    def restored(self, rgb: np.ndarray) -> np.ndarray:
        """Samples `[H, W, 1..4]` of colours `[H, W, 3]` in [0, 1], with what was put aside."""
        rgb = rgb.clip(0, 1)
        if self.gray:
            rgb = rgb.mean(-1, keepdims=True)
        samples = rgb.astype(_work_type(self.dtype)) * (self.high - self.low) + self.low
        samples = (np.round(samples) if self.dtype.kind in "iu" else samples).astype(self.dtype)
        if self.gaps:
            samples = np.where(*self.gaps, samples)
        return samples if self.extra is None else np.concatenate([samples, self.extra], axis=-1)


def split(samples: np.ndarray, nodata: float | None = None) -> tuple[np.ndarray, Samples]:
    """`[H, W]` or `[H, W, 1..4]` as float32 colours `[H, W, 3]` in [0, 1], and the rest; gaps become the mean.

    8- and 16-bit colours are scaled by their type's range, which is what a photograph's numbers mean. Other types mean
    nothing by theirs, so the range is that of the samples (for floats [0, 1] if they lie in it).
    """
    samples = samples[..., None] if samples.ndim == 2 else samples
    channels, dtype = 3 if samples.shape[-1] > 2 else 1, samples.dtype
    colours, extra = samples[..., :channels], samples[..., channels:]
    gap, gaps = _gap(colours, nodata), None
    if gap is not None and gap.any():
        gaps, valid = (gap, colours), colours[~gap]
        neutral = valid.mean(dtype=np.float64) if valid.size else 0.0
        colours = np.where(gap, dtype.type(neutral), colours)
    if dtype in (np.uint8, np.uint16):
        low, high = 0.0, float(np.iinfo(dtype).max)
    else:
        low, high = float(colours.min()), float(colours.max())  # the mean in the gaps widens no range
        low, high = (0.0, 1.0) if dtype.kind == "f" and 0 <= low and high <= 1 else (low, high)
    scaled = colours.astype(_work_type(dtype))
    scaled -= low
    scaled /= (high - low) or 1.0
    rgb = np.repeat(scaled, 3, axis=-1) if channels == 1 else scaled
    extra = extra if extra.size else None
    return rgb.astype(np.float32, copy=False), Samples(channels == 1, dtype, low, high, extra, gaps)


def _gap(colours: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Which samples are not finite or no data; None where none can be.

    A pixel is no data when all its colours are, as GDAL's mask of a data set has it: pure red is no gap where 0 is.
    """
    holes = ~np.isfinite(colours) if colours.dtype.kind == "f" else None
    if nodata is None:
        return holes
    empty = np.broadcast_to((colours == nodata).all(-1, keepdims=True), colours.shape)
    return empty if holes is None else holes | empty


def _work_type(dtype: np.dtype) -> type:
    """float32 holds 8 and 16 bits exactly, and is what a photograph's time goes into; 32 bits need more."""
    return np.float32 if dtype in (np.uint8, np.uint16) else np.float64
