"""What every reader of image files gives back, and the error that all of them raise."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class ImageFileError(ValueError):
    """A file that cannot be read, or not written as asked; the message is one line and names the remedy."""


@dataclass(frozen=True)
class Picture:
    """A decoded file. `rgb` is `[n, H, W, 3]` float32 in [0, 1]: n = 1, or the slices of a medical volume.

    `encode(restored)` takes restored pixels of the same shape and returns the bytes of the whole output file. `kind`
    says in words what the file is and what the output will be, for the summary.
    """

    rgb: np.ndarray
    encode: Callable[[np.ndarray], bytes]
    kind: str
