"""The `prepare` section of `params.yaml`: defaults of `python -m pipeline.prepare`."""

from typing import Annotated

from pydantic import Field, PositiveInt

from student.params import Section


class PrepareConfig(Section):
    """Sizes, strengths and windows of the preparations that papers leave to the reader."""

    scale: Annotated[int, Field(ge=2)] = 4
    """`bicubic`, `enlarge`: the factor; `crop`: what the sides become multiples of."""
    sigma: Annotated[float, Field(ge=0)] = 25.0
    """`noise`: strength on the 0-255 scale."""
    seed: int = 0
    """`noise`: joined with the file name, so that anyone gets the same input for the same name."""
    patch: PositiveInt = 512
    """`patches`: side of the squares in pixels."""
    stride: PositiveInt = 480
    """`patches`: step from one to the next; the last of a row and a column end at the image's edge."""
    axis: Annotated[int, Field(ge=0, le=2)] = 2
    """`slices`: the axis that is cut across; 2 gives axial slices of a volume in RAS order."""
    window: tuple[float, float] | None = None
    """`slices`: (lowest, highest) value, mapped to 0 and 65535, e.g. [-160, 240] HU for soft tissue in CT. Null: the
    smallest and largest value of the volume; CT needs one, so that all its scans are alike."""
    step: PositiveInt = 1
    """`slices`: take every so many-th slice."""
    min_foreground: Annotated[float, Field(ge=0, le=1)] = 0.1
    """`slices`: slices with a smaller share of pixels above the bottom of the window are left out."""
