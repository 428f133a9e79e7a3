"""All sections of `params.yaml` at once, so that a typo under `train` fails before hours of captioning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from student.params import Paths, load_section, read_params

if TYPE_CHECKING:
    from pipeline.captioning.config import CaptionConfig
    from pipeline.embedding.config import EmbedConfig
    from pipeline.indexing.config import IndexConfig
    from pipeline.reporting.config import ReportConfig
    from pipeline.samples import SamplesConfig
    from student.evaluation.config import EvalConfig
    from student.network.config import ModelConfig
    from student.training.config import TrainConfig


@dataclass(frozen=True)
class Params:
    """Every section, validated. A section that is not in the file is all defaults; `index` has none and is None."""

    paths: Paths
    samples: SamplesConfig
    index: IndexConfig | None
    caption: CaptionConfig
    embed: EmbedConfig
    model: ModelConfig
    train: TrainConfig
    eval: EvalConfig
    report: ReportConfig


def load_all(file: Path, overrides: list[str] | tuple[str, ...] = ()) -> Params:
    """Read `file`, apply `section.key=value` overrides, validate every section; raises `ParamsError`."""
    params = read_params(file, overrides)
    # Imported here: some owners bring numpy and scipy along, which `--help` need not wait for.
    from pipeline.captioning.config import CaptionConfig
    from pipeline.embedding.config import EmbedConfig
    from pipeline.indexing.config import IndexConfig
    from pipeline.reporting.config import ReportConfig
    from pipeline.samples import SamplesConfig
    from student.evaluation.config import EvalConfig
    from student.network.config import ModelConfig
    from student.training.config import TrainConfig

    return Params(
        paths=load_section(Paths, "paths", params),
        samples=load_section(SamplesConfig, "samples", params),
        index=load_section(IndexConfig, "index", params) if "index" in params else None,
        caption=load_section(CaptionConfig, "caption", params),
        embed=load_section(EmbedConfig, "embed", params),
        model=load_section(ModelConfig, "model", params),
        train=load_section(TrainConfig, "train", params),
        eval=load_section(EvalConfig, "eval", params),
        report=load_section(ReportConfig, "report", params),
    )
