"""Prompt pools: learned keys and values, composed for each image (PCM, arXiv 2603.01725).

Shapes: B batch, C channels, N pool size, K top_k, L tokens a prompt, D prompt dim.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.network.config import POOL_HEADS, ModelConfig


class Composition(NamedTuple):
    """What one pool made of one batch: the representation PR_t or PR_d, of which query; cos(query, keys) / T over the
    whole pool, without the selection noise; the chosen prompts, and their softmax weights α, which sum to 1."""

    prompt_BD: Tensor
    query_BD: Tensor
    similarity_BN: Tensor
    index_BK: Tensor
    weight_BK: Tensor


class Prompts(NamedTuple):
    """Of a batch, `None` where a pool is off; `fused` [B, D] is for the blocks ([B, 2D] with `pool_fusion: concat`)."""

    task: Composition | None
    domain: Composition | None
    fused: Tensor | None


class PromptPool(nn.Module):
    """N learned (key, value) pairs of which each query composes its `top_k` nearest."""

    def __init__(self, size: int, top_k: int, prompt_len: int, dim: int, selection_noise: float):
        super().__init__()
        self.top_k, self.selection_noise = top_k, selection_noise
        self.keys_ND = nn.Parameter(torch.empty(size, dim))
        self.values_NLD = nn.Parameter(torch.empty(size, prompt_len, dim))
        self.temperature = nn.Parameter(torch.ones(1))  # FSDP2 cannot shard a scalar
        self.aggregate = nn.Sequential(nn.Linear(prompt_len * dim, dim), nn.LayerNorm(dim), nn.GELU())
        self.reset_prompts()

    @torch.no_grad()
    def reset_prompts(self) -> None:
        """[authors' code] Row by row: the first half Xavier-uniform, the second half "orthogonal", which for a single
        row is a random unit vector; then 0.5·N(0,1) on all but the first."""
        size, dim = self.keys_ND.shape
        # The fans of a [1, D] key are (D, 1); those of a [1, 1, D] value are (D, D).
        for rows, fans in ((self.keys_ND, dim + 1), (self.values_NLD, 2 * dim)):
            bound = math.sqrt(6 / fans)
            rows[: size // 2].uniform_(-bound, bound)
            rows[size // 2 :].copy_(F.normalize(torch.randn_like(rows[size // 2 :]), dim=-1))
            rows[1:].add_(0.5 * torch.randn_like(rows[1:]))

    @torch.no_grad()
    def start_from(self, centroids_ND: Tensor) -> None:
        """[ours] Start keys and values at `centroids_ND`, L2-normalised, and the aggregation as the mean over the L
        tokens: a query that predicts the teacher's embedding then finds its neighbourhood, and the composed prompt is
        that neighbourhood's mean, from step 0. Raises ValueError on another shape."""
        if tuple(centroids_ND.shape) != tuple(self.keys_ND.shape):
            raise ValueError(f"centroids {list(centroids_ND.shape)}: this pool needs {list(self.keys_ND.shape)}")
        rows_ND = F.normalize(centroids_ND.to(self.keys_ND), dim=-1)
        length, dim = self.values_NLD.shape[1:]
        self.keys_ND.copy_(rows_ND)
        self.values_NLD.copy_(rows_ND[:, None].expand_as(self.values_NLD))
        linear = self.aggregate[0]
        linear.weight.copy_(torch.eye(dim).repeat(1, length) / length)
        linear.bias.zero_()

    def forward(self, query_BD: Tensor) -> Composition:
        keys_ND = F.normalize(self.keys_ND, dim=-1)
        similarity_BN = F.normalize(query_BD, dim=-1) @ keys_ND.T / self.temperature.clamp(0.1, 2.0)
        ranked_BN = similarity_BN
        if self.training and self.selection_noise:
            ranked_BN = similarity_BN + self.selection_noise * torch.randn_like(similarity_BN)
        index_BK = ranked_BN.topk(self.top_k, dim=-1).indices
        weight_BK = similarity_BN.gather(-1, index_BK).softmax(dim=-1)
        composed_BLD = torch.einsum("bk,bkld->bld", weight_BK, self.values_NLD[index_BK])
        return Composition(self.aggregate(composed_BLD.flatten(1)), query_BD, similarity_BN, index_BK, weight_BK)


def grid_pool(x: Tensor, grid: int) -> Tensor:
    """`adaptive_avg_pool2d(x, grid)`: [B, C, H, W] → [B, C, grid, grid].

    Exported, it is two matrix products: the exporter would fix the cells' borders to the sides of the example image.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, grid)
    rows, columns = (_cells(side, grid, x) for side in x.shape[2:])
    return rows @ x @ columns.transpose(0, 1)


def _cells(size: int, grid: int, like: Tensor) -> Tensor:
    """[grid, size]: row i averages the pixels floor(i·size/grid) to ceil((i+1)·size/grid)."""
    cell, pixel = torch.arange(grid, device=like.device)[:, None], torch.arange(size, device=like.device)
    inside = (pixel >= cell * size // grid) & (pixel < ((cell + 1) * size + grid - 1) // grid)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)


class QueryHead(nn.Module):
    """Features [B, C, H, W] → query [B, D] [authors' code]. `grid`: 8 for the domain query, 4 for the task query."""

    def __init__(self, channels: int, dim: int, grid: int):
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 4, 3, padding=1)
        self.project = nn.Linear(channels // 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(grid_pool(x, self.grid)).relu()
        x = self.conv2(grid_pool(x, self.grid // 2)).relu()
        return self.project(x.mean((2, 3)))


class PoolFusion(nn.Module):
    """PR_d attends to PR_t, then a feed-forward part [authors' code], as `pool_fusion: attention`.

    With one key the softmax is 1: query and key projections, whose gradients are exactly 0, are left out. What remains
    of the attention's dropout is that a head is lost with probability `dropout`.
    """

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dim, dim))

    def forward(self, domain_BD: Tensor, task_BD: Tensor) -> Tensor:
        heads = self.value(task_BD).unflatten(-1, (POOL_HEADS, -1))
        attended_BD = self.out(F.dropout1d(heads, self.dropout, self.training).flatten(1))
        x_BD = self.norm(attended_BD + domain_BD)
        return x_BD + self.ffn(x_BD)


class PromptBranch(nn.Module):
    """Both pools with their queries, and the fusion of their representations."""

    def __init__(self, config: ModelConfig, first_channels: int, deepest_channels: int):
        super().__init__()
        dim, length, noise = config.prompt_dim, config.prompt_len, config.selection_noise
        self.task_pool = self.domain_pool = self.fusion = None
        if config.task_pool:
            self.task_query = QueryHead(deepest_channels, dim, grid=4)
            self.task_pool = PromptPool(config.task_pool_size, config.task_top_k, length, dim, noise)
        if config.domain_pool:
            self.domain_query = QueryHead(first_channels, dim, grid=8)
            self.domain_pool = PromptPool(config.domain_pool_size, config.domain_top_k, length, dim, noise)
        if config.task_pool and config.domain_pool and config.pool_fusion == "attention":
            self.fusion = PoolFusion(dim, config.dropout)

    def forward(self, first: Tensor, deepest: Tensor) -> Prompts:
        """`first` [B, C, H, W]: the first convolution's features; `deepest`: those after the last downsampling."""
        # Under autocast this branch stays in the parameters' fp32: near-equal similarities must not tie in half
        # precision, or the choice of prompts would depend on it. It is a few vectors an image and costs nothing.
        dtype = next(self.parameters()).dtype
        task = domain = None
        with torch.autocast(first.device.type, enabled=False):
            if self.task_pool is not None:
                task = self.task_pool(self.task_query(deepest.to(dtype)))
            if self.domain_pool is not None:
                domain = self.domain_pool(self.domain_query(first.to(dtype)))
            found = [composed.prompt_BD for composed in (domain, task) if composed is not None]
            fused = torch.cat(found, dim=-1) if self.fusion is None else self.fusion(*found)
        return Prompts(task, domain, fused)

    def tokens(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """[ours] The tokens of `fusion: tokens`, [B, T, D], and the logarithm of their prior weights, [B, T].

        T = 1 + K·L a pool: the fused representation and every chosen prompt's own tokens. The prior keeps α in
        the computation: each pool weighs as much as the fused token, α_j of it falls to prompt j, shared by its tokens.
        """
        tokens, log_weights = [prompts.fused[:, None]], [torch.zeros_like(prompts.fused[:, :1])]
        for pool, composed in ((self.domain_pool, prompts.domain), (self.task_pool, prompts.task)):
            if pool is not None:
                length = pool.values_NLD.shape[1]
                tokens.append(pool.values_NLD[composed.index_BK].flatten(1, 2))
                log_weights.append((composed.weight_BK / length).log().repeat_interleave(length, dim=1))
        return torch.cat(tokens, dim=1), torch.cat(log_weights, dim=1)
