"""A still picture, decoded: its samples and all else that its file holds."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from student.images import tiff
from student.images.picture import ImageFileError, upright
from student.images.sample_values import Samples


@dataclass(frozen=True)
class Still:
    """What a still picture's file holds."""

    format: str
    samples: Samples
    mode: str
    """As Pillow has it, with `;BITS` behind what Pillow would not tell from 8 bits."""
    frames: int = 1
    orientation: int = 1
    metadata: dict[str, Any] = field(default_factory=dict)
    lossless: bool = False
    layout: tiff.Layout | None = None
    """Of a TIFF that Pillow would not keep."""
    tags: tuple[tiff.Tag, ...] = ()
    """A TIFF's texts and georeference."""

    def seen_upright(self) -> np.ndarray:
        """float32 `[H, W, 3]` in [0, 1] as a person sees it; raises `ImageFileError` where samples are missing."""
        values = self.samples.values
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ImageFileError("samples that are not finite (NaN): nothing can be learned from them; fill or crop")
        return upright(self.samples.over_white(), self.orientation)

    @property
    def straight(self) -> bool:
        """Whether a band says how opaque the others are, unlike premultiplied ones."""
        return self.samples.alpha is not None and not self.samples.premultiplied
