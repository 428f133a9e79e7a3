"""A small student on disk whose weights are random but not the identity, for the tests that restore."""

from pathlib import Path

import torch

from student.model import Student
from student.model_config import ModelConfig

MODEL = ModelConfig(
    width=8, encoder_blocks=(1, 1), latent_blocks=1, decoder_blocks=(1, 1), refinement_blocks=0, heads=(1, 2, 4),
    task_pool_size=4, task_top_k=2, domain_pool_size=4, domain_top_k=2, prompt_dim=32, zero_init_output=False,
)  # fmt: skip


def save_student(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    student = Student(MODEL.model_copy(update=changes))
    with torch.no_grad():  # a visible change that does not leave [0, 1] everywhere
        for parameter in student.backbone.output.parameters():
            parameter.mul_(0.3)
    student.save_pretrained(folder)
    return folder
