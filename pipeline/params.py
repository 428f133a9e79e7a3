"""All sections of `params.yaml` at once, so that a typo under `train` fails before hours of captioning."""

import dataclasses
from pathlib import Path

from pipeline.caption_config import CaptionConfig
from pipeline.embed_config import EmbedConfig
from pipeline.report_config import ReportConfig
from student.config import Paths, load_section, read_params
from student.eval_config import EvalConfig
from student.model_config import ModelConfig
from student.train_config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Params:
    """Every section, validated."""

    paths: Paths
    caption: CaptionConfig
    embed: EmbedConfig
    model: ModelConfig
    train: TrainConfig
    eval: EvalConfig
    report: ReportConfig


def load_all(file: Path, overrides: list[str] | tuple[str, ...] = ()) -> Params:
    """Read `file`, apply `section.key=value` overrides, validate every section; raises `ParamsError`."""
    params = read_params(file, overrides)
    return Params(**{field.name: load_section(field.type, field.name, params) for field in dataclasses.fields(Params)})
