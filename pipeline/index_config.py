"""The `index` section of `params.yaml`: which folders hold the pairs, and how their files belong together."""

import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from student.config import Section
from student.degradations import DegradationSpec


class PairRule(Section):
    """Templates of file stems. An lq and a gt whose `{id}` agree are a pair.

    `{id}` may hold anything; every other `{name}` stands for a part without underscore that is ignored. The default
    pairs equal stems. Examples: `{lq: "rain-{id}", gt: "norain-{id}"}`, `{lq: "{id}x4"}`, and many lq to one gt:
    `{lq: "{id}_{beta}_{airlight}"}`.
    """

    lq: str = "{id}"
    gt: str = "{id}"

    @field_validator("lq", "gt")
    @classmethod
    def _holds_id(cls, template: str) -> str:
        if template.count("{id}") != 1:
            raise ValueError(f"the template {template!r} must hold {{id}} exactly once")
        return template

    def key(self, side: str, stem: str) -> str | None:
        """The `{id}` of a stem (relative path without extension), or None if the template does not fit."""
        folder, _, name = stem.rpartition("/")
        parts = re.split(r"(\{\w+\})", getattr(self, side))
        pattern = "".join(
            "(?P<id>.+)" if part == "{id}" else "[^_]+" if part.startswith("{") else re.escape(part) for part in parts
        )
        match = re.fullmatch(pattern, name)
        return match and f"{folder}/{match['id']}"


class SplitSpec(Section):
    """One split of a data set: folders (or globs of folders or files), a CSV list, or clean images to be degraded."""

    gt: str | list[str] = []
    """Clean images: folders or globs, relative to `index.root`; folders are searched recursively."""
    lq: str | list[str] = []
    """Degraded images, in the same way. SR inputs are already upsampled to gt size."""
    pair: PairRule = PairRule()
    csv: str | None = None
    """Instead of folders: a CSV file with the columns `gt` and, unless degraded on the fly, `lq`."""
    degradation: DegradationSpec | None = None
    """Instead of lq files: how the trainer degrades the clean images on the fly."""

    @model_validator(mode="after")
    def _one_source(self) -> "SplitSpec":
        if bool(self.gt) == bool(self.csv):
            raise ValueError("give either gt (folders) or csv (a list)")
        if not self.csv and bool(self.lq) == bool(self.degradation):
            raise ValueError("give either lq (folders) or degradation (applied on the fly)")
        return self


class DatasetSpec(Section):
    """One data set: one domain, one task."""

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    domain: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    splits: Annotated[dict[Annotated[str, Field(pattern=r"^(train|val|test)$")], SplitSpec], Field(min_length=1)]


class IndexConfig(Section):
    """All data sets under one root."""

    root: str = "artifacts/samples"
    """Folder that all paths below are relative to."""
    datasets: Annotated[list[DatasetSpec], Field(min_length=1)]
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The stage fails when a larger share of the rows is broken, missing or unpaired."""
    max_pixels: Annotated[int, Field(ge=1)] = 200_000_000
    """An image with more pixels is not decoded: a decompression bomb, or a mistake."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Threads that hash and decode; 0: one per core."""

    @field_validator("datasets")
    @classmethod
    def _unique(cls, datasets: list[DatasetSpec]) -> list[DatasetSpec]:
        names = [dataset.name for dataset in datasets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"data sets named twice: {', '.join(twice)}")
        return datasets
