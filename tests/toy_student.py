"""Tiny students of every kind, for tests of the network."""

from contextlib import nullcontext

import torch

from student.model import Student
from student.network.config import ModelConfig
from student.training.config import LossWeights, TrainConfig
from student.training.losses import TERMS, Losses, compute_losses

TINY = {
    "width": 16, "encoder_blocks": (1,), "latent_blocks": 1, "decoder_blocks": (1,), "refinement_blocks": 1,
    "heads": (1, 2), "prompt_dim": 16, "task_pool_size": 4, "domain_pool_size": 4, "task_top_k": 2, "domain_top_k": 3,
    "zero_init_output": False,
}  # fmt: skip
NAF = {"backbone": "nafnet", "refinement_blocks": 0}
POOLS = {
    "both": {},
    "both-concat": {"pool_fusion": "concat"},
    "task": {"domain_pool": False},
    "domain": {"task_pool": False},
}
# Every configuration that differs in its code: backbone x pools x fusion of the pools x fusion in the blocks.
CONFIGURATIONS = {
    f"{backbone}-{pools}-{fusion}": {**shape, **choice, "fusion": fusion}
    for backbone, shape in (("restormer", {}), ("nafnet", NAF))
    for pools, choice in POOLS.items()
    for fusion in ("broadcast", "modulation", "concat", "tokens")
    if (pools, fusion) != ("both-concat", "tokens")  # refused: tokens are of one dimension
}
NO_PROMPTS = {"task_pool": False, "domain_pool": False}
CONFIGURATIONS |= {"restormer-none": NO_PROMPTS, "nafnet-none": {**NAF, **NO_PROMPTS}}


def make_student(**options) -> Student:
    torch.manual_seed(0)
    return Student(ModelConfig(**{**TINY, **options}))


def alive(model: Student) -> Student:
    """NAFNet's blocks start as identities and an output may start at zero: move both away from it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".beta", ".gamma")) or name.startswith("backbone.output"):
                parameter.normal_(0, 0.3)
    return model


def losses_of(
    student: Student, lq: torch.Tensor, weights: dict[str, float], dtype: torch.dtype | None = None
) -> Losses:
    """The trainer's own losses, of those that have a weight, on 4 rows of 2 tasks and 2 domains."""
    random = torch.Generator().manual_seed(1)
    with torch.autocast("cpu", dtype) if dtype else nullcontext():
        restored, prompts = student(lq, return_prompts=True)
    batch = {"prior": torch.randn(4, 16, generator=random), "has_prior": torch.ones(4, dtype=torch.bool)}
    batch |= {"task": torch.tensor([0, 1, 0, 1]), "domain": torch.tensor([0, 0, 1, 1])}
    batch["gt"] = torch.rand(lq.shape, generator=random)
    values = {name: pool.values_NLD for name, pool in student.pools().items()}
    config = TrainConfig(losses=LossWeights(**(dict.fromkeys(TERMS, 0.0) | weights)))
    return compute_losses(restored, prompts, batch, values, config)
