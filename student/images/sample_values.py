"""What a number in a file means. Samples of any type as colours for the network, and back as the same type.

One concept serves restoring, training, evaluation and captions: `ValueRange`, which number is black and which is white.
What is no colour (no data, not finite, wholly transparent) takes no part in it, and comes back as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DEPTHS = (4095.0, 10000.0, 16383.0, 65535.0)
"""Usual tops of unsigned numbers in 16 bits: 12 bits, reflectances (x 10000), 14 bits, all 16."""
TAIL = 0.005
"""Share of the samples at either end that may lie anywhere: hot pixels, metal, glints."""
SMALLEST_FILL = 999
"""Such as -9999, -32768 and -3.4e38; a smaller number may be a sample."""
ROWS_OF = 2**16
"""Pixels that are turned back into samples at once."""
SURVEYED = 2**20
"""Samples whose quantiles are taken."""


@dataclass(frozen=True)
class ValueRange:
    """`low` is 0 for the network, `high` is 1; `source` tells in words who says so, nothing for a type's range."""

    low: float
    high: float
    source: str = ""

    def seen(self, samples: np.ndarray) -> np.ndarray:
        """Samples as the network gets them: float32 in [0, 1]. float32 holds 8 and 16 bits exactly; 32 need more."""
        scaled = samples.astype(np.float32 if samples.dtype in (np.uint8, np.uint16) else np.float64)
        scaled -= self.low
        scaled /= (self.high - self.low) or 1.0
        return scaled.clip(0, 1, out=scaled).astype(np.float32, copy=False)

    def updated(self, samples: np.ndarray, change: np.ndarray) -> np.ndarray:
        """The samples, those within the range plus what the network changed, in float64.

        Outside, the network saw the range's end instead of the sample: its answer says nothing about that.
        """
        within = (samples >= self.low) & (samples <= self.high)
        return samples.astype(np.float64) + np.where(within, change, 0) * (self.high - self.low)

    def __str__(self) -> str:
        return f"black is {self.low:g} and white is {self.high:g}, {self.source}"


def given_range(low: float, high: float) -> ValueRange:
    """The range that a person named; raises ValueError where it is none."""
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"the range {low:g} {high:g} is none: give LOW and a larger HIGH")
    return ValueRange(low, high, "as given")


def to_type(samples: np.ndarray, dtype: np.dtype, limits: tuple[float, float] | None = None) -> np.ndarray:
    """float64 as `dtype`: rounded and held within `limits`, by default those of the type."""
    if dtype.kind == "f":
        return samples.astype(dtype)
    info = np.iinfo(dtype)
    return np.round(samples).clip(*(limits or (info.min, info.max))).astype(dtype)


def find_range(valid: np.ndarray, tagged: tuple[float, float] | None = None) -> ValueRange:
    """The range of samples `[n]` without gaps: by the file's tags, its type, or all but outliers of the samples.

    8 bits mean 0 to 255. Unsigned numbers in 16 bits, and whole numbers in floats, mean the smallest of the usual tops
    that holds them; floats within [0, 1] mean that. Other numbers mean nothing by their type: their own range.
    """
    dtype = valid.dtype
    if dtype == np.uint8:
        return ValueRange(0, 255)
    if not valid.size:
        return ValueRange(0, 1)
    low, high = _without_outliers(valid)
    if tagged and tagged[0] < tagged[1] and tagged[0] <= low and high <= tagged[1]:
        full = dtype.kind == "u" and tagged == (0, np.iinfo(dtype).max)
        return ValueRange(float(tagged[0]), float(tagged[1]), "" if full else "by the file's tags")
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return ValueRange(0, 1)
    whole = dtype == np.uint16 or (dtype.kind == "f" and low >= 0 and bool((valid == np.rint(valid)).all()))
    if whole and high <= DEPTHS[-1]:
        top = next(top for top in (DEPTHS if dtype == np.uint16 else (255.0, *DEPTHS)) if high <= top)
        return ValueRange(0, top, "" if top == DEPTHS[-1] else "by the samples")
    return own_range(valid)


def own_range(valid: np.ndarray) -> ValueRange:
    """From the smallest to the largest sample but for outliers."""
    low, high = _without_outliers(valid) if valid.size else (0.0, 0.0)
    if low == high:  # no sample differs from another
        low, high = min(low, 0.0), max(high, 1.0)
    return ValueRange(low, high, "by the samples")


def _without_outliers(valid: np.ndarray) -> tuple[float, float]:
    """Smallest and largest sample, but no further than half their spread beyond all but `TAIL` at either end."""
    some = valid[:: -(-valid.size // SURVEYED)]
    ends = [float(np.quantile(some, q, method=m)) for q, m in ((TAIL, "higher"), (1 - TAIL, "lower"))]
    low, high, spread = float(valid.min()), float(valid.max()), ends[1] - ends[0]
    if spread <= 0:  # sparse: what is not background is all there is to see
        return low, high
    return max(low, ends[0] - spread / 2), min(high, ends[1] + spread / 2)


def find_fill(valid: np.ndarray) -> float | None:
    """A fill value that no tag names: an extreme number, twice or more, far off from all others."""
    for end in (float(valid.min()), float(valid.max())) if valid.size else ():
        rest = valid[valid != end] if abs(end) >= SMALLEST_FILL else valid
        if not 2 <= valid.size - rest.size < valid.size:
            continue
        low, high = _without_outliers(rest)
        gap = abs(float(rest.min() if end < low else rest.max()) - end)
        if low < high and gap > 2 * (high - low) and abs(end) > max(abs(low), abs(high)):
            return end
    return None


@dataclass(frozen=True)
class Samples:
    """What the samples `stored` `[H, W, N]` of a picture mean."""

    stored: np.ndarray
    bands: tuple[int, ...]
    """The one or three that are colours; all others are copied."""
    span: ValueRange
    gap: np.ndarray | None
    """Which samples are no colour: `[H, W, 1]` or, where they are not finite, `[H, W, C]` bool."""
    nodata: float | None = None
    alpha: int | None = None
    """The band of transparency, if there is one."""
    premultiplied: bool = False

    @property
    def gray(self) -> bool:
        return len(self.bands) == 1

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    @property
    def values(self) -> np.ndarray:
        """The colours' samples `[H, W, 1 or 3]`."""
        first, last = self.bands[0], self.bands[-1]
        return self.stored[..., first : last + 1] if self.bands == (*range(first, last + 1),) else self._picked

    @property
    def _picked(self) -> np.ndarray:
        return self.stored[..., list(self.bands)]

    def colours(self) -> np.ndarray:
        """float32 `[H, W, 3]` in [0, 1] as the network sees them; a gap is the mean of what is none."""
        seen = self.span.seen(self.values if self.gap is None else np.nan_to_num(self.values))
        if self.gap is not None:
            gap = np.broadcast_to(self.gap, seen.shape)
            valid = seen[~gap]
            seen[gap] = valid.mean(dtype=np.float64) if valid.size else 0.0
        return np.repeat(seen, 3, axis=-1) if self.gray else seen

    def over_white(self) -> np.ndarray:
        """float32 `[H, W, 3]` in [0, 1] as a person sees them, for training, evaluation and captions.

        A no-data value is a number like any other here: nothing is made up for a target.
        """
        seen = self.span.seen(self.values)
        if self.alpha is not None:
            opacity = self.stored[..., self.alpha, None].astype(np.float32)
            tops = (255, np.iinfo(self.dtype).max) if self.dtype.kind in "iu" else (self.span.high,)
            opacity /= next((top for top in tops if opacity.max() <= top), tops[-1])  # some write 255 in 16 bits
            if opacity.min() < 1:
                seen = (seen if self.premultiplied else seen * opacity) + (1 - opacity)
        seen = seen.clip(0, 1)
        return np.repeat(seen, 3, axis=-1) if self.gray else seen

    def restored(self, rgb: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Samples `[H, W, N]` of restored colours `[H, W, 3]` in [0, 1], with what was put aside; `seen`: `colours()`.

        8 bits become the new picture. To others the change is added, so that what the range leaves out stays.
        """
        out, values, few = self.stored.copy(), self.values, max(1, ROWS_OF // rgb.shape[1])
        for start in range(0, len(rgb), few):  # in float64 a picture is many times as large
            rows = slice(start, start + few)
            new = self._updated(values[rows], rgb[rows].clip(0, 1), seen[rows])
            out[rows, :, list(self.bands)] = new if self.gap is None else np.where(self.gap[rows], values[rows], new)
        return out

    def _updated(self, values: np.ndarray, rgb: np.ndarray, seen: np.ndarray) -> np.ndarray:
        if self.dtype == np.uint8:
            rgb = rgb.mean(-1, keepdims=True) if self.gray else rgb
            new = np.round(rgb * np.float32(255)).astype(np.uint8)
        else:
            change = rgb - seen
            change = change.mean(-1, keepdims=True) if self.gray else change
            new = to_type(self.span.updated(values, change), self.dtype)
        if self.nodata is not None:  # what has become this number is a sample nevertheless
            number, middle = self.dtype.type(self.nodata), (self.span.low + self.span.high) / 2
            next_one = self.nodata + np.sign(middle - self.nodata)
            next_one = np.nextafter(number, self.dtype.type(middle)) if self.dtype.kind == "f" else next_one
            new[(new == number).all(-1)] = next_one
        return new


def understand(
    stored: np.ndarray,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
    premultiplied: bool = False,
    span: ValueRange | None = None,
    tagged: tuple[float, float] | None = None,
) -> Samples:
    """`[H, W]` or `[H, W, N]` of any type; `alpha`: the last band is transparency; `span`: a known range."""
    stored = stored[..., None] if stored.ndim == 2 else stored
    bands = tuple(bands) if bands else (0, 1, 2) if stored.shape[-1] > 2 else (0,)
    transparency = stored.shape[-1] - 1 if alpha else None
    values = Samples(stored, bands, ValueRange(0, 1), None).values
    if nodata is not None and stored.dtype.kind in "iu":
        info = np.iinfo(stored.dtype)
        nodata = nodata if info.min <= nodata <= info.max and nodata == int(nodata) else None
    gap = None if values.dtype.kind != "f" or np.isfinite(values).all() else ~np.isfinite(values)
    empty = None
    if nodata is not None and np.isfinite(nodata):
        empty = _equals(values, nodata)
    elif nodata is None and values.dtype != np.uint8:
        fill = find_fill(values.ravel() if gap is None else values[~gap])
        empty = None if fill is None else (values == fill).all(-1, keepdims=True)
    if transparency is not None and not (opaque := stored[..., transparency, None] != 0).all():
        empty = ~opaque if empty is None else empty | ~opaque
    if empty is not None and empty.any():
        gap = empty if gap is None else gap | empty
    if span is None or values.dtype == np.uint8:
        clear = gap is None or values.dtype == np.uint8
        span = find_range(values.ravel() if clear else values[~np.broadcast_to(gap, values.shape)], tagged)
    return Samples(stored, bands, span, gap, nodata, transparency, premultiplied)


def _equals(values: np.ndarray, nodata: float) -> np.ndarray:
    """A pixel is no data when all its colours are, as GDAL's mask of a data set has it: pure red is no gap where 0 is.

    A number written in decimals differs from the float's in its last digits, -3.4e38 even in more.
    """
    if values.dtype.kind != "f":
        return (values == nodata).all(-1, keepdims=True)
    tolerance = 1e-2 if abs(nodata) > 1e30 else 1e-6
    return np.isclose(values, nodata, rtol=tolerance, atol=0).all(-1, keepdims=True)
