"""The `ablate` section of `params.yaml`: which variants of a run are compared."""

import re
from typing import Annotated

from pydantic import Field, model_validator

from student.params import SECTIONS, Section

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]


class Variant(Section):
    """One change of the parameters around it."""

    asks: str
    """What its difference to `against` tells, as a question; stands in the table."""
    set: list[str] = []
    """`section.key=value`, as `--set` takes them: scalars, and lists as `[a,b]` without blanks."""
    against: Name | None = None
    """The variant that it is compared with; null: `ablate.reference`."""
    control: bool = False
    """It must not help; the table says so if it does."""

    @model_validator(mode="after")
    def _overrides(self) -> "Variant":
        for override in self.set:
            key, _, value = override.partition("=")
            if not re.fullmatch(r"\w+(\.\w+)+", key) or key.split(".")[0] not in SECTIONS or not value:
                raise ValueError(f"{override!r} must be SECTION.KEY=VALUE, e.g. train.losses.align=0")
            if key in ("train.seed", "paths.metrics"):
                raise ValueError(f"{override!r}: {key} is set by the ablation itself")
        return self


class AblateConfig(Section):
    """The comparison. Everything else in the file is the setting in which it is made."""

    seeds: Annotated[list[int], Field(min_length=2)] = [0, 1, 2]
    """`train.seed` of the repetitions; every variant gets all of them, so that differences can be paired."""
    reference: Name = "both"
    variants: dict[Name, Variant] = {}
    copy_paths: list[str] | None = None
    """Git-ignored folders that an experiment's workspace needs besides what DVC checks out; null: the samples and the
    caption store."""
    max_copy_gb: Annotated[float, Field(gt=0)] = 2.0
    """Copying more than this for every experiment is refused."""
    out: str = "artifacts/ablation"

    @model_validator(mode="after")
    def _known(self) -> "AblateConfig":
        for name, variant in self.variants.items():
            against = variant.against or self.reference
            if against not in self.variants:
                raise ValueError(
                    f"{name} is compared with {against!r}, which is no variant: {', '.join(self.variants)}"
                )
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: a repeated seed repeats a number, not the experiment")
        return self
