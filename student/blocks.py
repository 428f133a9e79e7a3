"""The blocks of both backbones, written for channels-last memory.

Shapes: B batch, H, W height and width, P = H·W pixels, C channels, c channels a head.

Features travel as [B, H, W, C]: LayerNorm over channels and 1×1 convolutions then read contiguous memory and need no
permutation, and a 3×3 convolution sees the same memory as an ordinary channels-last NCHW tensor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from student.fusion import Condition, GatedFusion


class SpatialConv(nn.Conv2d):
    """A convolution on [B, H, W, C] features; its weight keeps PyTorch's layout. Neither permutation copies."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def depthwise(channels: int, bias: bool) -> SpatialConv:
    return SpatialConv(channels, channels, 3, padding=1, groups=channels, bias=bias)


class ChannelAttention(nn.Module):
    """MDTA: attention between channels, not pixels (arXiv 2111.09881).

    Queries and keys are L2-normalised along pixels, and a learned temperature scales each head's [c, c] scores.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads))
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.qkv_conv = depthwise(3 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        batch, height, width, channels = x_BHWC.shape
        qk, v_BPC = self.qkv_conv(self.qkv(x_BHWC)).flatten(1, 2).split((2 * channels, channels), dim=-1)
        # In fp32: a sum of squares over a large image overflows fp16.
        norm = torch.linalg.vector_norm(qk, dim=1, dtype=torch.float32).clamp_min(1e-12)
        if qk.dtype != torch.float32:
            # A half-precision product over all pixels overflows too, so normalise before it; in fp32 it is cheaper to
            # divide the [c, c] scores afterwards.
            qk = qk * norm.reciprocal().to(qk.dtype)[:, None]
            norm = torch.ones_like(norm)
        q_BPC, k_BPC = qk.chunk(2, dim=-1)
        # A product a head: its strided views need no copy, unlike a batched product with the heads as a dimension.
        per_head = channels // self.heads
        scores = torch.stack(
            [q.mT @ k for q, k in zip(q_BPC.split(per_head, -1), k_BPC.split(per_head, -1), strict=True)], dim=1
        )
        q_norm, k_norm = norm.unflatten(-1, (2, self.heads, per_head)).unbind(1)
        scores = scores.float() / (q_norm[..., None] * k_norm[..., None, :])
        attention = (scores * self.temperature[:, None, None]).softmax(-1)
        # out(attention @ v) = (out·attention) @ v: projecting the small matrix saves one pass over the pixels.
        out = self.out.weight.unflatten(1, (self.heads, per_head)).transpose(0, 1)
        mixing_BCC = (out.to(v_BPC.dtype) @ attention.to(v_BPC.dtype)).transpose(1, 2).flatten(2)
        return (v_BPC @ mixing_BCC.mT).view(batch, height, width, channels)


class GatedFeedForward(nn.Module):
    """GDFN: out(gelu(a)·b), where a and b are the halves of a 1×1 and a depth-wise 3×3 convolution."""

    def __init__(self, channels: int, expansion: float):
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = nn.Linear(channels, 2 * hidden, bias=False)
        self.conv = depthwise(2 * hidden, bias=False)
        self.out = nn.Linear(hidden, channels, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        a, b = self.conv(self.expand(x_BHWC)).chunk(2, dim=-1)
        return self.out(F.gelu(a) * b)


class RestormerBlock(nn.Module):
    """Channel attention and feed-forward part, each with a residual; with a `fusion` also the prompt."""

    def __init__(self, channels: int, heads: int, expansion: float, fusion: GatedFusion | None = None):
        super().__init__()
        self.fusion = fusion
        self.norm1 = nn.LayerNorm(channels)
        self.attention = ChannelAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = GatedFeedForward(channels, expansion)

    def forward(self, x_BHWC: Tensor, *condition: Tensor) -> Tensor:
        fused = x_BHWC if self.fusion is None else self.fusion(x_BHWC, *condition)
        x_BHWC = x_BHWC + self.attention(self.norm1(fused))
        return x_BHWC + self.ffn(self.norm2(x_BHWC))


class NAFBlock(nn.Module):
    """NAFNet's block (arXiv 2204.04676); its prompt enters after the first normalisation [release]."""

    def __init__(self, channels: int, fusion: GatedFusion | None = None):
        super().__init__()
        self.fusion = fusion
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 2 * channels)
        self.conv = depthwise(2 * channels, bias=True)
        self.channel_gain = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.ffn_expand = nn.Linear(channels, 2 * channels)
        self.ffn_project = nn.Linear(channels, channels)
        self.beta = nn.Parameter(torch.zeros(channels))
        self.gamma = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BHWC: Tensor, *condition: Tensor) -> Tensor:
        y = self.norm1(x_BHWC)
        if self.fusion is not None:
            y = self.fusion(y, *condition)
        a, b = self.conv(self.expand(y)).chunk(2, dim=-1)
        y = a * b
        y = self.project(y * self.channel_gain(y.mean((1, 2), keepdim=True)))
        x_BHWC = torch.addcmul(x_BHWC, y, self.beta.to(y.dtype))
        a, b = self.ffn_expand(self.norm2(x_BHWC)).chunk(2, dim=-1)
        return torch.addcmul(x_BHWC, self.ffn_project(a * b), self.gamma.to(y.dtype))


Block = RestormerBlock | NAFBlock


def run_blocks(blocks: nn.ModuleList, x_BHWC: Tensor, conditions: list[Condition], checkpoint: bool) -> Tensor:
    """Apply `blocks` in turn, each with its condition; `checkpoint` recomputes them in the backward pass."""
    for block, condition in zip(blocks, conditions, strict=True):
        if checkpoint and torch.is_grad_enabled():
            # Blocks draw no random numbers, so there is no generator state to keep.
            x_BHWC = recompute(block, x_BHWC, *condition, use_reentrant=False, preserve_rng_state=False)
        else:
            x_BHWC = block(x_BHWC, *condition)
    return x_BHWC
