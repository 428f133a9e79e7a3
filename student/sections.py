"""The sections of `params.yaml` that the student's commands own; `pipeline.params` adds those of the stages."""

from student.evaluation.config import EvalConfig
from student.network.config import ModelConfig
from student.params import Paths, Section
from student.training.config import TrainConfig


class StudentParams(Section):
    """A section that is not in the file is all defaults."""

    paths: Paths = Paths()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
