"""Cut a large image into overlapping tiles and blend the restored tiles without seams.

Tiles start at multiples of the network's `stride`. It halves the sides by taking pixels together in fixed pairs: cut
elsewhere, a tile pairs them otherwise, and is restored otherwise (benchmarks/RESULTS.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of an image: `starts`, one `length`, and for each tile its blending weights.

    `weights[i]` is `[length]` float32; over all tiles the weights of a pixel sum to 1, so that blending is a plain sum
    and needs no second image of divisors.
    """

    starts: list[int]
    length: int
    weights: list[np.ndarray]

    def cores(self, stride: int) -> list[slice]:
        """Each tile's own part, within the tile: every pixel is in one, cut in the middle of what neighbours share."""
        ends = [start + self.length for start in self.starts]
        cuts = [(end + start) // 2 // stride * stride for end, start in zip(ends, self.starts[1:], strict=False)]
        edges = [0, *cuts, ends[-1]]
        return [slice(a - start, b - start) for start, a, b in zip(self.starts, edges, edges[1:], strict=False)]


def plan_axis(size: int, tile: int, overlap: int, stride: int = 1) -> Axis:
    """As few tiles of at most `tile` pixels as cover `size` with neighbours sharing `overlap` or a little more.

    The tiles are spread evenly: none is cut short at the far end, where a narrow rest would be restored with too
    little context, and all are as short as their number allows: 512 pixels in tiles of 256 are three of 192. Weights
    fall linearly to 0 within the shared pixels. Raises ValueError if `tile <= overlap`, or if one of the three is no
    multiple of `stride`, at whose multiples the tiles start.
    """
    if size % stride or tile % stride or overlap % stride:
        raise ValueError(f"{size}, {tile} and {overlap} must be multiples of {stride}")
    if tile >= size:
        return Axis([0], size, [np.ones(size, np.float32)])
    if tile <= overlap:
        raise ValueError(f"a tile of {tile} pixels cannot overlap its neighbour by {overlap}; use a larger tile")
    count = -(-(size - overlap) // (tile - overlap))
    tile = -(-(size + (count - 1) * overlap) // (count * stride)) * stride
    starts = [stride * round(i * (size - tile) / (count - 1) / stride) for i in range(count)]
    raw = []
    for i, start in enumerate(starts):
        ramp = np.ones(tile)
        if i > 0:
            shared = starts[i - 1] + tile - start
            ramp[:shared] = np.minimum(ramp[:shared], (np.arange(shared) + 1) / (shared + 1))
        if i < count - 1:
            shared = start + tile - starts[i + 1]
            ramp[tile - shared :] = np.minimum(ramp[tile - shared :], (np.arange(shared, 0, -1)) / (shared + 1))
        raw.append(ramp)
    total = np.zeros(size)
    for start, ramp in zip(starts, raw, strict=True):
        total[start : start + tile] += ramp
    weights = [(ramp / total[s : s + tile]).astype(np.float32) for s, ramp in zip(starts, raw, strict=True)]
    return Axis(starts, tile, weights)


def plan_tiles(
    height: int, width: int, tile: int, overlap: int, stride: int = 1
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield rows, columns and blending weights `[h, w]` of each tile, row by row."""
    down, across = (plan_axis(side, tile, overlap, stride) for side in (height, width))
    for top, weight_y in zip(down.starts, down.weights, strict=True):
        for left, weight_x in zip(across.starts, across.weights, strict=True):
            rows, columns = slice(top, top + down.length), slice(left, left + across.length)
            yield rows, columns, weight_y[:, None] * weight_x[None]


def plan_cores(
    height: int, width: int, tile: int, overlap: int, stride: int
) -> Iterator[tuple[slice, slice, slice, slice]]:
    """Yield rows and columns of each tile as `plan_tiles`, and rows and columns of its core within the tile."""
    down, across = (plan_axis(side, tile, overlap, stride) for side in (height, width))
    for top, rows in zip(down.starts, down.cores(stride), strict=True):
        for left, columns in zip(across.starts, across.cores(stride), strict=True):
            yield slice(top, top + down.length), slice(left, left + across.length), rows, columns


def mosaic(image: np.ndarray, side: int, stride: int = 1) -> np.ndarray:
    """A `[C, side, side]` sample of `[C, H, W]` at native resolution: the centre of each of 8 x 8 parts, or of fewer.

    [ours] An image too large for one forward is known by this sample: the prompts it chooses, and what its blocks
    compute from all pixels. The query networks average their features over an 8x8 (domain) or 4x4 (task) grid first, so
    a sample of every grid cell estimates what they would see; shrinking the image instead would hide the very
    degradation (noise, rain) that the prompts are chosen by. Pieces are at least `SMALLEST_PIECE` wide and start at
    multiples of `stride`. Sides shorter than `side` are kept whole.
    """
    for axis in (1, 2):
        image = np.concatenate(_sample_axis(image, axis, side, stride), axis)
    return image


SMALLEST_PIECE = 128
"""Less shows the deeper levels little but the piece's own border: 64 cost 3 to 13 dB of the agreement."""


def _sample_axis(image: np.ndarray, axis: int, side: int, stride: int) -> list[np.ndarray]:
    size = image.shape[axis]
    if size <= side:
        return [image]
    pieces = max(1, min(8, side // SMALLEST_PIECE))
    piece = side // pieces // stride * stride
    starts = [stride * round(((i + 0.5) * size / pieces - piece / 2) / stride) for i in range(pieces)]
    return [image.take(range(start, start + piece), axis) for start in starts]
