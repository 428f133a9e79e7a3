"""The `index` section of `params.yaml`: which folders hold the pairs, and how their files belong together."""

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from student.data.degradations import DegradationSpec
from student.images.sample_values import given_range
from student.params import Section

Name = Annotated[str, Field(pattern=r"^[\w.+-]+$")]
Places = str | list[str]


class PairRule(Section):
    """Templates of file stems. An lq and a gt are a pair where every placeholder that both templates have agrees.

    `{id}` may hold anything; every other `{name}` stands for a part without underscore. The default pairs equal stems.
    Examples: `{lq: "rain-{id}", gt: "norain-{id}"}`, `{lq: "{id}x4"}`, and many lq to one gt:
    `{lq: "{id}_{beta}_{airlight}"}`. With a `/` a template is compared with the end of the path, for data sets that
    keep both sides in one folder: `{lq: "{scene}/blur/{id}", gt: "{scene}/sharp/{id}"}`. A list of templates: the first
    that fits a name counts.
    """

    lq: Places = "{id}"
    gt: Places = "{id}"

    @field_validator("lq", "gt")
    @classmethod
    def _holds_id(cls, templates: Places) -> Places:
        for template in _listed(templates) or [""]:
            names = re.findall(r"\{(\w+)\}", template)
            if names.count("id") != 1 or len(set(names)) < len(names):
                raise ValueError(
                    f"the template {template!r} must hold {{id}} exactly once, and no other {{name}} twice"
                )
        return templates

    @cached_property
    def _patterns(self) -> dict[str, list[tuple[int, re.Pattern]]]:
        """For each side: how many folders a template names, and the template as an expression."""
        return {
            side: [(template.count("/"), re.compile(_pattern(template))) for template in _listed(getattr(self, side))]
            for side in ("lq", "gt")
        }

    @cached_property
    def _shared(self) -> list[str]:
        names = [set(pattern.groupindex) for side in self._patterns.values() for _, pattern in side]
        return sorted(set.intersection(*names))

    def key(self, side: str, stem: str) -> str | None:
        """What must be equal on both sides of a pair, or None if the template does not fit.

        stem: path without extension, relative to the folder. Its folders count too, except where the template names
        them itself.
        """
        parts = stem.split("/")
        for named, pattern in self._patterns[side]:
            if match := pattern.fullmatch("/".join(parts[-1 - named :])):
                folders = parts[:-1] if not named else []
                return "/".join([*folders, *(match[name] for name in self._shared)])
        return None


def _listed(places: Places) -> list[str]:
    return [places] if isinstance(places, str) else places


def _pattern(template: str) -> str:
    parts = re.split(r"(\{\w+\})", template)
    return "".join(
        r"(?P<id>[^/]+)" if part == "{id}" else f"(?P<{part[1:-1]}>[^_/]+)" if part[:1] == "{" else re.escape(part)
        for part in parts
    )


class HuggingFace(Section):
    """A Hugging Face `datasets` source: a hub id, a folder of `save_to_disk`, or imagefolder, parquet, arrow with
    `data_dir` or `data_files`. Images inside tables are written once, byte for byte, below `index.extracted`."""

    path: str
    name: str | None = None
    """Configuration of a hub data set."""
    revision: str | None = None
    split: str = "train"
    data_dir: str | None = None
    """Relative to `index.root`, and so is the next."""
    data_files: Places | None = None
    gt: str = "image"
    """Column of the clean images."""
    lq: str | None = None
    """Column of the degraded images; none where there is a `degradation`."""


class SplitSpec(Section):
    """One split of a data set: folders (or globs of folders or files), a CSV list, a Hugging Face data set; each with
    its lq, or with a degradation for clean images alone."""

    gt: Places = []
    """Clean images: folders, `*.tar` or globs, relative to `index.root`, or addresses such as `s3://bucket/folder`;
    folders are searched recursively."""
    lq: Places = []
    """Degraded images, in the same way, of the size of their gt, or smaller where the data set says `upsample`."""
    pair: PairRule = PairRule()
    csv: str | None = None
    """Instead of folders: a CSV file with the columns `gt` and, unless degraded on the fly, `lq`."""
    hf: HuggingFace | None = None
    """Instead of folders: a Hugging Face data set."""
    source: str | None = None
    """Instead of folders: `module:function` of your own (docs/extending.md), which is imported and run."""
    options: dict[str, Any] = {}
    """What `source` is called with, besides the root."""
    degradation: DegradationSpec | None = None
    """Instead of lq files: how the trainer degrades the clean images on the fly."""

    @model_validator(mode="after")
    def _one_source(self) -> "SplitSpec":
        if sum(map(bool, (self.gt, self.csv, self.hf, self.source))) != 1:
            raise ValueError("give one of gt (folders), csv (a list), hf (a Hugging Face data set), source (your code)")
        has_lq = bool(self.lq or (self.hf and self.hf.lq))
        if self.lq and not self.gt:
            raise ValueError("lq goes with gt; csv, hf and source name their own")
        if not (self.csv or self.source) and has_lq == bool(self.degradation):
            raise ValueError("give either lq (folders) or degradation (applied on the fly)")
        return self


class DatasetSpec(Section):
    """One data set: one domain, one task. Several tasks on the same clean images are several entries."""

    name: Name
    domain: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    splits: Annotated[dict[Literal["train", "val", "test"], SplitSpec], Field(min_length=1)]
    range: tuple[float, float] | None = None
    """The numbers that are black and white in all images, such as [0, 10000]. Null: as type, tags or samples of each
    clean image say, for it and its lq."""

    upsample: Literal["bicubic"] | None = None
    """Inputs of super-resolution as they are shipped: every lq is a whole number of times smaller than its gt, and is
    enlarged when it is read, by MATLAB's kernel. Null: lq and gt have one size."""

    @model_validator(mode="after")
    def _upsamples_something(self) -> "DatasetSpec":
        if self.upsample and all(spec.degradation for spec in self.splits.values()):
            raise ValueError("upsample enlarges stored lq, and every split has a degradation; leave one of them out")
        return self

    @field_validator("range")
    @classmethod
    def _is_range(cls, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends:
            given_range(*ends)
        return ends


class IndexConfig(Section):
    """All data sets under one root."""

    root: str = "artifacts/samples"
    """Folder, or address such as `s3://bucket/folder`, that all paths below are relative to."""
    datasets: Annotated[list[DatasetSpec], Field(min_length=1)]
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The stage fails when a larger share of the rows is broken, missing or unpaired; below it they are left out."""
    max_pixels: PositiveInt = 200_000_000
    """An image with more pixels is not decoded: a decompression bomb, or one to cut up first (pipeline.prepare)."""
    image_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """A file that takes longer to read and decode is unreadable: no file can stop the stage."""
    extracted: str = "artifacts/extracted"
    """Where images out of Hugging Face tables are written."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that hash and decode; 0: one per core."""

    @field_validator("datasets")
    @classmethod
    def _unique(cls, datasets: list[DatasetSpec]) -> list[DatasetSpec]:
        names = [dataset.name for dataset in datasets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"data sets named twice: {', '.join(twice)}")
        return datasets
