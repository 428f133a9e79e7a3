"""What every teacher is to the caption stage, and what it answers. Imports no torch.

A teacher is made by `TEACHER(model, perspectives=..., quantization=..., max_new_tokens=..., padding=..., revision=...,
dtype=..., device=..., batch_size=..., quantized_cache=...)`, the keys of the section `caption`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from teacher.square import Square


@dataclass(frozen=True)
class Caption:
    """One answer. `n_tokens` counts new tokens without the end token; `finish_reason` is `stop` or `length`."""

    text: str
    n_tokens: int
    finish_reason: str


@dataclass(frozen=True)
class CaptionFailure:
    """An image that could not be captioned although others could; `reason` is one line."""

    reason: str


@dataclass
class Statistics:
    """What was done since the teacher was made: counts, and seconds by phase (summed over threads)."""

    images: int = 0
    captions: int = 0
    tokens: int = 0
    "new tokens, end tokens included"
    wasted_tokens: int = 0
    "decoding slots taken by rows that had already ended"
    prompt_tokens: int = 0
    wasted_prompt_tokens: int = 0
    "padding between the shared prefix and shorter questions"
    seconds: dict[str, float] = field(default_factory=lambda: {"preprocess": 0.0, "prefill": 0.0, "generate": 0.0})


class Teacher(Protocol):
    """Answers the same questions about every image."""

    batch_size: int
    """Images that are answered together."""
    square: Square
    """What the stage makes of each picture, in the processes that decode, before the teacher gets it."""
    statistics: Statistics

    def provenance(self) -> dict[str, str]:
        """What may differ between two runs with equal fingerprints."""

    def caption(
        self, images: Sequence[Image.Image], perspectives: Sequence[str] | None = None
    ) -> list[dict[str, Caption] | CaptionFailure]:
        """For each RGB image perspective → `Caption`, or why there is none; raises what no other image would survive.

        Pictures that are no squares yet are made so.
        """
