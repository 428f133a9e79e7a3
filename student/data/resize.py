"""MATLAB's bicubic `imresize`, of floats and of integers, as every data set of super-resolution was made with it."""

import numpy as np


def bicubic_resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """MATLAB's `imresize(image, [height width], "bicubic")` of floats [H, W, C], not rounded and not clipped, float32.

    a = -0.5, antialiased when shrinking, mirrored borders.
    """
    for axis, size in enumerate((height, width)):
        image = _bicubic_pass(image, axis, size)
    return image.astype(np.float32)


def enlarge(image: np.ndarray, scale: int) -> np.ndarray:
    """`image` [H, W, C], floats in [0, 1] or unsigned integers, `scale` times as large, of the same type."""
    height, width = (scale * side for side in image.shape[:2])
    if image.dtype.kind == "u":
        return resize_integers(image, height, width)
    return bicubic_resize(image.astype(np.float32, copy=False), height, width).clip(0, 1)


def resize_integers(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`bicubic_resize` of unsigned integers [H, W, C], rounded as MATLAB does: halves up, after the rows and again."""
    kind, top = image.dtype, np.iinfo(image.dtype).max
    for axis, size in enumerate((height, width)):
        # 1e-9: a half may have become a hair less; the nearest fraction that is none is farther away
        image = np.floor(_bicubic_pass(image, axis, size).clip(0, top) + (0.5 + 1e-9))
    return image.astype(kind)


def resize_as_8_bit(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`resize_integers` of the 8-bit picture nearest to floats [H, W, C] in [0, 1]; float32 in [0, 1]."""
    return resize_integers(np.rint(image * 255).astype(np.uint8), height, width).astype(np.float32) / 255


def _bicubic_pass(image: np.ndarray, axis: int, size: int) -> np.ndarray:
    return np.moveaxis(np.tensordot(_bicubic_weights(image.shape[axis], size), image, axes=(1, axis)), 0, axis)


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
    mirrored = np.minimum(taps % (2 * size_in), -(taps + 1) % (2 * size_in))
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], mirrored), weights)
    return matrix
