"""The six losses of DATPRL-IR (arXiv 2603.01725), each a plain function, and their weighted sum.

B batch, N pool size, L tokens, D prompt dim, G whole batch (over all processes). The paper names the six terms and tau,
the authors' code their weights (`LossWeights`); forms marked [ours] are written out nowhere.

Several processes: `balance` and `contrastive` are not means over rows, so they see the whole batch, gathered by
`gather_rows`; then the mean of the processes' gradients, which DDP takes, is the gradient of the whole batch's loss.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from student.network.prompts import Prompts
from student.training.config import LossWeights, TrainConfig

TERMS = tuple(LossWeights.model_fields)

Gather = Callable[[Tensor], Tensor]


def loss_pixel(restored: Tensor, gt: Tensor) -> Tensor:
    """mean |restored - gt| [paper]."""
    return (restored - gt).abs().mean()


def loss_fft(restored: Tensor, gt: Tensor) -> Tensor:
    """mean over real and imaginary parts of |fft2(restored) - fft2(gt)|, torch's default norm [paper]. The
    transform is linear, so one of the difference is enough."""
    return torch.view_as_real(torch.fft.fft2(restored - gt)).abs().mean()


def loss_align(prompt_BD: Tensor, prior_BD: Tensor, has_prior_B: Tensor, gather: Gather = lambda x: x) -> Tensor:
    """1 - cos(PR_d, F_text), mean over the rows that have a prior [paper].

    The processes may hold unequal numbers of priors: each divides by their mean number, so that the mean of the
    processes' losses is the whole batch's. Without any prior the loss is 0.
    """
    distance_B = 1 - F.cosine_similarity(prompt_BD, prior_BD, dim=-1)
    has_prior_G = gather(has_prior_B)
    processes = len(has_prior_G) / len(has_prior_B)
    # `where`, not a product: the prior of a row without one may hold anything.
    return torch.where(has_prior_B, distance_B, 0.0).sum() / (has_prior_G.sum() / processes).clamp(min=1 / processes)


def loss_diversity(values_NLD: Tensor, margin: float) -> Tensor:
    """mean over pairs i < j of relu(cos(V_i, V_j) - tau), values flattened [ours]."""
    unit_NX = F.normalize(values_NLD.flatten(1), dim=-1)
    first, second = torch.triu_indices(len(unit_NX), len(unit_NX), offset=1, device=unit_NX.device)
    return F.relu((unit_NX @ unit_NX.T)[first, second] - margin).mean()


def loss_balance(similarity_GN: Tensor) -> Tensor:
    """log N - H(p), p the batch mean of softmax(s) over all N prompts [ours]: 0 when all prompts are used alike, log N
    when one takes all."""
    usage_N = similarity_GN.softmax(dim=-1).mean(0)
    return math.log(similarity_GN.shape[1]) + torch.special.xlogy(usage_N, usage_N).sum()


def loss_contrastive(prompt_GD: Tensor, label_G: Tensor, temperature: float) -> Tensor:
    """Supervised InfoNCE [ours]: for each row the mean over its positives (other rows of its label) of
    -log softmax(cos / temperature) over all other rows; mean over the rows that have a positive. 0 when no row has
    one."""
    unit_GD = F.normalize(prompt_GD, dim=-1)
    itself_GG = torch.eye(len(unit_GD), dtype=torch.bool, device=unit_GD.device)
    logits_GG = (unit_GD @ unit_GD.T / temperature).masked_fill(itself_GG, -torch.inf)
    positive_GG = (label_G[:, None] == label_G) & ~itself_GG
    # `where`, not a product: the diagonal is -inf, and 0 * inf is nan.
    pull_G = torch.where(positive_GG, logits_GG.log_softmax(dim=-1), 0.0).sum(1)
    count_G = positive_GG.sum(1)
    return -(pull_G / count_G.clamp(min=1)).sum() / (count_G > 0).sum().clamp(min=1)


def gather_rows(rows: Tensor, gather: Gather) -> Tensor:
    """The rows of all processes; gradients flow to this process's rows, times the number of processes.

    Every process computes the same loss of the whole batch, and DDP then takes the mean of their gradients: the factor
    makes that mean the gradient, without a second exchange in the backward pass.
    """
    everyone = gather(rows.detach())
    processes = len(everyone) // len(rows)
    if processes == 1:
        return rows
    # Adds zeros whose gradient is not zero, exactly where this process's rows are.
    start = torch.distributed.get_rank() * len(rows)
    places = (0, 0) * (rows.ndim - 1) + (start, len(everyone) - start - len(rows))
    return everyone + F.pad((rows - rows.detach()) * processes, places)


class Losses(NamedTuple):
    """One batch's losses. `raw` holds this process's unweighted terms, without those of weight 0."""

    total: Tensor
    raw: dict[str, Tensor]


def compute_losses(
    restored: Tensor,
    prompts: Prompts,
    batch: dict[str, Tensor],
    values: dict[str, Tensor],
    config: TrainConfig,
    gather: Gather = lambda rows: rows,
) -> Losses:
    """All terms whose weight is not 0, and their weighted sum, in float32.

    `batch` is one of `PairDataset`, `values` are the prompt values [N, L, D] of the pools, "task" and "domain". Terms
    that both pools have are the mean over the pools that are on, so that a weight means the same with one. `gather`
    concatenates rows over the processes, as `Accelerator.gather` does.
    """
    restored, gt = restored.float(), batch["gt"].float()
    pools = {name: pool for name in ("task", "domain") if (pool := getattr(prompts, name)) is not None}

    def contrastive(name: str) -> Tensor:
        prompt_GD = gather_rows(pools[name].prompt_BD.float(), gather)
        return loss_contrastive(prompt_GD, gather(batch[name]), config.contrastive_temperature)

    terms: dict[str, Callable[[], Tensor]] = {
        "pixel": lambda: loss_pixel(restored, gt),
        "fft": lambda: loss_fft(restored, gt),
        "align": lambda: loss_align(pools["domain"].prompt_BD.float(), batch["prior"], batch["has_prior"], gather),
    }
    of_a_pool: dict[str, Callable[[str], Tensor]] = {
        "diversity": lambda name: loss_diversity(values[name].float(), config.diversity_margin),
        "balance": lambda name: loss_balance(gather_rows(pools[name].similarity_BN.float(), gather)),
        "contrastive": contrastive,
    }
    raw, weights = {}, {name: weight for name, weight in config.losses.model_dump().items() if weight}
    for name in weights:
        raw[name] = terms[name]() if name in terms else torch.stack([of_a_pool[name](pool) for pool in pools]).mean()
    total = torch.stack([weights[name] * raw[name] for name in raw]).sum()
    return Losses(total, {name: value.detach() for name, value in raw.items()})
