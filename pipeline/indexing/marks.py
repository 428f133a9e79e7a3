"""Is one picture another one, saved anew, or a part of it? Compared by points that both show, wherever they lie.

Up to `COUNT` points an image, where it is locally brightest or darkest; each described by 64 bits of what lies around.
The points move with the picture, so a crop has those inside it; they outlive JPEG and a change of depth, but neither
scaling nor rotation, and a picture without detail has none.

Measured on 555 photographs and satellite images against 89 others: no false alarm in 49,395 pairs. Found of 111: 99
saved as JPEG of quality 50, 87 of three quarters of each side, 47 of a quarter of the area as JPEG of quality 80; 6 ms
an image of 321x481 pixels.
"""

import numpy as np
from PIL import Image, ImageFilter
from scipy.ndimage import label, maximum_filter

COUNT, FINE, COARSE = 40, 2, 5
"""Points an image, and the two blurs (in pixels of half size) whose difference they are the extremes of."""
STEP, REACH = 3, 12
"""Spacing of the 8 x 8 samples around a point, and how far from the edge a point must lie."""
LEAST = 3
"""8-bit levels by which a point stands out: in less there is only noise."""
BITS, VOTES, SLACK = 8, 4, 1
"""Two points are one if at most so many bits differ; two pictures are, if so many points moved alike, give or take."""
MARK = np.dtype([("bits", "<u8"), ("x", "<i2"), ("y", "<i2")])


def marks_of(image: Image.Image) -> bytes:
    """`MARK`s of an RGB picture, strongest first."""
    gray = image.convert("L")
    half = gray.reduce(2) if min(gray.size) >= 4 else gray
    fine, coarse = (np.asarray(half.filter(ImageFilter.GaussianBlur(blur)), np.int16) for blur in (FINE, COARSE))
    height, width = fine.shape
    if min(height, width) <= 2 * REACH or max(height, width) > np.iinfo(np.int16).max:
        return b""
    contrast = np.abs(fine - coarse)
    peaks = (contrast == maximum_filter(contrast, 9)) & (contrast >= LEAST)
    peaks[:REACH] = peaks[-REACH:] = peaks[:, :REACH] = peaks[:, -REACH:] = False
    y, x = np.nonzero(peaks)
    first = np.sort(np.unique(label(peaks, np.ones((3, 3)))[0][y, x], return_index=True)[1])  # of a plateau, one
    best = first[np.argsort(-contrast[y, x][first], kind="stable")[: 4 * COUNT]]
    found = np.empty(len(best), MARK)
    found["x"], found["y"] = x[best], y[best]
    offsets = (np.arange(8) * 2 - 7) * STEP // 2
    rows, columns = (found[name].astype(int)[:, None] + offsets for name in ("y", "x"))
    around = fine[rows[:, :, None], columns[:, None, :]].reshape(-1, 64)
    found["bits"] = np.packbits(around > np.median(around, axis=1, keepdims=True), axis=1).view("<u8")[:, 0]
    # Points that look alike in one picture, as along a horizon, tell nothing about another.
    alike = np.bitwise_count(found["bits"][:, None] ^ found["bits"]) <= 2 * BITS
    return found[~np.tril(alike, -1).any(1)][:COUNT].tobytes()


def shared(train: list[bytes], held_out: list[bytes]) -> list[tuple[int, int]]:
    """(train, held out) positions of pictures that are one, or of which one is a part of the other."""
    (marks, owner), (asked, asker) = _joined(train), _joined(held_out)
    pairs: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for band in range(4):  # of four quarters of near-equal bits, at least one is likely to be equal
        keys, wanted = (m["bits"].copy().view("<u2").reshape(-1, 4)[:, band] for m in (marks, asked))
        order = np.argsort(keys, kind="stable")
        starts, ends = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
        for at in np.flatnonzero(ends > starts):
            near = order[starts[at] : ends[at]]
            near = near[np.bitwise_count(marks["bits"][near] ^ asked["bits"][at]) <= BITS]
            for mark in near:
                moved = (int(asked["x"][at]) - int(marks["x"][mark]), int(asked["y"][at]) - int(marks["y"][mark]))
                pairs.setdefault((int(owner[mark]), int(asker[at])), set()).add((at, *moved))
    return sorted(pair for pair, votes in pairs.items() if len(votes) >= VOTES and _moved_alike(votes))


def _joined(marks: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    counts = [len(of_image) // MARK.itemsize for of_image in marks]
    return np.frombuffer(b"".join(marks), MARK), np.repeat(np.arange(len(marks)), counts)


def _moved_alike(votes: set[tuple[int, int, int]]) -> bool:
    found = np.array(sorted(votes))
    near = (np.abs(found[:, None, 1:] - found[None, :, 1:]) <= SLACK).all(-1)
    return any(len(set(found[row, 0])) >= VOTES for row in near)
