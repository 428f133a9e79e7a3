"""All sections of `params.yaml` at once, so that a typo under `train` fails before hours of captioning."""

from pathlib import Path

from pipeline.ablation.config import AblateConfig
from pipeline.captioning.config import CaptionConfig
from pipeline.embedding.config import EmbedConfig
from pipeline.indexing.config import IndexConfig
from pipeline.preparing.config import PrepareConfig
from pipeline.reporting.config import ReportConfig
from pipeline.sample_sources import SamplesConfig
from student.params import load_sections, read_params
from student.sections import StudentParams


class Params(StudentParams):
    """Every section, validated; `index` alone has no defaults, and is None where the file lacks it."""

    samples: SamplesConfig = SamplesConfig()
    index: IndexConfig | None = None
    caption: CaptionConfig = CaptionConfig()
    embed: EmbedConfig = EmbedConfig()
    report: ReportConfig = ReportConfig()
    prepare: PrepareConfig = PrepareConfig()
    ablate: AblateConfig = AblateConfig()


def load_all(file: Path, overrides: list[str] | tuple[str, ...] = ()) -> Params:
    """Read `file`, apply `section.key=value` overrides, validate every section; raises `ParamsError`."""
    return load_sections(Params, read_params(file, overrides))
