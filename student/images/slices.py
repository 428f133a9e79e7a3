"""The slices of a medical file as a picture: seen in the window that a reader sees, kept in every sample's own depth.

A slice goes into the network as its display window, scaled to [0, 1]. What the network changed is then *added* to the
stored samples: what lies outside the window (bone, metal, air) keeps its value, and so does padding.
"""

from collections.abc import Callable
from math import prod

import numpy as np

from student.images.picture import Picture, check_memory
from student.images.sample_values import ValueRange, own_range

SAMPLE_BYTES = 84
"""Memory for each, at most: as stored, as float64 and float32 before, after as float32 colours, float64 and packed."""


def check_volume(shape: tuple[int, ...]) -> None:
    """Raises `TooLittleMemory` for a volume that is too large, before it is decoded."""
    sides = "x".join(str(side) for side in shape)
    check_memory(sides, SAMPLE_BYTES * prod(max(side, 1) for side in shape), "split the volume")


def picture_of(
    slices: np.ndarray,
    span: ValueRange,
    gap: np.ndarray,
    inverted: bool,
    write: Callable[[np.ndarray], bytes],
    kind: str,
) -> Picture:
    """A picture of the float64 samples `slices` `[n, H, W]`; `write` takes a copy restored, `gap` (alike) is kept."""
    seen = np.stack([span.seen(np.nan_to_num(plane)) for plane in slices])
    seen = 1 - seen if inverted else seen
    if gap.any():
        seen[gap] = seen[~gap].mean(dtype=np.float64) if not gap.all() else 0

    def encode(restored: np.ndarray) -> bytes:
        new = slices.copy()
        for plane, before, after, hole in zip(new, seen, restored, gap, strict=True):
            change = after.mean(-1, dtype=np.float64) - before
            plane[~hole] = span.updated(plane, -change if inverted else change)[~hole]
        return write(new)

    rgb = np.broadcast_to(seen[..., None], (*seen.shape, 3))
    return Picture(rgb, encode, f"{kind}, window {span.low:g} to {span.high:g}")


def seen_range(window: tuple[float, float] | None, valid: np.ndarray) -> ValueRange:
    """The window, unless it holds no sample or is none; else what the samples say."""
    if window and window[0] < window[1] and ((valid > window[0]) & (valid < window[1])).any():
        return ValueRange(*window, "by the file's window")
    return own_range(valid)
