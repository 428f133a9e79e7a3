"""The blocks of both backbones. Features travel as [B, H, W, C]: LayerNorm over channels and 1×1 convolutions then
read contiguous memory, and a 3×3 convolution sees the same memory as an ordinary channels-last NCHW tensor.

Shapes: B batch, H, W height and width, P = H·W pixels, C channels, c channels a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.network.fusion import GatedFusion
from student.network.recompute import gated_product, project


def add(x: Tensor, update: Tensor) -> Tensor:
    """x + update; without gradients into `update`, which saves a pass over fresh memory."""
    return x + update if torch.is_grad_enabled() else update.add_(x)


class SpatialConv(nn.Conv2d):
    """A convolution on [B, H, W, C] features; its weight keeps PyTorch's layout. Neither permutation copies."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return super().forward(x_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def depthwise_conv(x_BHWC: Tensor, weight: Tensor) -> Tensor:
    """A 3×3 convolution of each channel with its own filter, `weight` [C, 1, 3, 3]."""
    x_BCHW = x_BHWC.permute(0, 3, 1, 2)
    return F.conv2d(x_BCHW, weight, padding=1, groups=x_BCHW.shape[1]).permute(0, 2, 3, 1)


def depthwise(channels: int, bias: bool) -> SpatialConv:
    return SpatialConv(channels, channels, 3, padding=1, groups=channels, bias=bias)


def _length(x_BPC: Tensor) -> Tensor:
    """Each channel's L2 norm along pixels [B, C], in fp32: a sum of squares over a large image overflows fp16."""
    if x_BPC.dtype == torch.float32:
        # Four times as fast on a CPU as vector_norm along a middle dimension. Clamped before the root, whose gradient
        # at 0 is infinite.
        return x_BPC.square().sum(1).clamp_min(1e-24).sqrt()
    # Its reciprocal is multiplied with in half precision, and 1e-12 has none in fp16: a black crop would become NaN.
    shortest = 2e-5 if x_BPC.dtype == torch.float16 else 1e-12
    return torch.linalg.vector_norm(x_BPC, dim=1, dtype=torch.float32).clamp_min(shortest)


class ChannelAttention(nn.Module):
    """MDTA: attention between channels, not pixels (arXiv 2111.09881).

    Queries and keys are L2-normalised along pixels, and a learned temperature scales each head's [c, c] scores.
    `norm` is applied to the input first; it is an argument so that its result need not be kept for the backward pass.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads))
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.qkv_conv = depthwise(3 * channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)

    def forward(self, x_BHWC: Tensor, norm: nn.LayerNorm) -> Tensor:
        features = project(x_BHWC, norm, self.qkv.weight.chunk(3))
        filters = self.qkv_conv.weight.chunk(3)
        q, k, v = (depthwise_conv(x, w).flatten(1, 2) for x, w in zip(features, filters, strict=True))
        return (v @ self.mixing(q, k).to(v.dtype).mT).view(x_BHWC.shape)

    def mixing(self, q: Tensor, k: Tensor) -> Tensor:
        """Queries and keys [B, P, C] → what the values are multiplied with, [B, C, C]."""
        q_length, k_length = _length(q), _length(k)
        if q.dtype != torch.float32:
            # A half-precision product over all pixels overflows, so normalise before it; in fp32 it is cheaper to
            # divide the [c, c] scores afterwards.
            q, k = q * q_length.reciprocal().to(q.dtype)[:, None], k * k_length.reciprocal().to(k.dtype)[:, None]
            q_length, k_length = torch.ones_like(q_length), torch.ones_like(k_length)
        return self.mixing_of(self.scores(q, k).float(), q_length, k_length, q.dtype)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Queries and keys [B, P, C] → their products within each head [B, heads, c, c]."""
        # A product a head: its strided views need no copy, unlike a batched product with the heads as a dimension.
        per_head = q.shape[-1] // self.heads
        return torch.stack([a.mT @ b for a, b in zip(q.split(per_head, -1), k.split(per_head, -1), strict=True)], dim=1)

    def mixing_of(self, scores: Tensor, q_length: Tensor, k_length: Tensor, dtype: torch.dtype) -> Tensor:
        heads = (self.heads, scores.shape[-1])
        scores = scores / (q_length.unflatten(-1, heads)[..., None] * k_length.unflatten(-1, heads)[..., None, :])
        attention = (scores * self.temperature[:, None, None]).softmax(-1)
        # out(attention @ v) = (out·attention) @ v: projecting the small matrix saves one pass over the pixels.
        out = self.out.weight.unflatten(1, heads).transpose(0, 1)
        return (out.to(dtype) @ attention.to(dtype)).transpose(1, 2).flatten(2)


class GatedFeedForward(nn.Module):
    """GDFN: out(gelu(a)·b), where a and b are the halves of a 1×1 and a depth-wise 3×3 convolution of norm(x).

    The published expansion of 2.66 gives 127, 255, 510 and 1021 hidden channels, and matrix products of such sizes run
    at half speed (96 → 510 on 9216 pixels of one AMD EPYC core: 24 ms; 512: 16 ms). So the hidden channels are padded
    with zeros, which change nothing, to a multiple of 16 while computing; the parameters keep their size.
    """

    def __init__(self, channels: int, expansion: float):
        super().__init__()
        self.hidden = int(channels * expansion)
        self.expand = nn.Linear(channels, 2 * self.hidden, bias=False)
        self.conv = depthwise(2 * self.hidden, bias=False)
        self.out = nn.Linear(self.hidden, channels, bias=False)

    def padded(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """Weights, filters (of the halves a and b each) and the output's weight, padded with zeros."""
        # Two halves rather than one tensor in two views: gelu is vectorised on contiguous memory only.
        pad = -self.hidden % 16
        expand = F.pad(self.expand.weight.unflatten(0, (2, -1)), (0, 0, 0, pad))
        filters = F.pad(self.conv.weight.unflatten(0, (2, -1)), (0, 0, 0, 0, 0, 0, 0, pad))
        return expand.unbind(), filters.unbind(), F.pad(self.out.weight, (0, pad))

    def forward(self, x_BHWC: Tensor, norm: nn.LayerNorm) -> Tensor:
        expand, filters, out = self.padded()
        features = project(x_BHWC, norm, expand)
        a, b = (depthwise_conv(x, w) for x, w in zip(features, filters, strict=True))
        return gated_product(a, b, out)


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
        fused_BHWC = x_BHWC if self.fusion is None else self.fusion(x_BHWC, *condition)
        x_BHWC = add(x_BHWC, self.attention(fused_BHWC, self.norm1))
        return add(x_BHWC, self.ffn(x_BHWC, self.norm2))


class NAFBlock(nn.Module):
    """NAFNet's block (arXiv 2204.04676); its prompt enters after the first normalisation [authors' code]."""

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
        y_BHWC = self.gated(x_BHWC, *condition)
        return self.scaled(x_BHWC, y_BHWC, self.channel_gain(y_BHWC.mean((1, 2), keepdim=True)))

    def gated(self, x_BHWC: Tensor, *condition: Tensor) -> Tensor:
        y_BHWC = self.norm1(x_BHWC)
        if self.fusion is not None:
            y_BHWC = self.fusion(y_BHWC, *condition)
        a, b = self.conv(self.expand(y_BHWC)).chunk(2, dim=-1)
        return a * b

    def scaled(self, x_BHWC: Tensor, y_BHWC: Tensor, gain_B11C: Tensor) -> Tensor:
        y = self.project(y_BHWC * gain_B11C)
        x_BHWC = torch.addcmul(x_BHWC, y, self.beta.to(y.dtype))
        a, b = self.ffn_expand(self.norm2(x_BHWC)).chunk(2, dim=-1)
        return torch.addcmul(x_BHWC, self.ffn_project(a * b), self.gamma.to(y.dtype))


Block = RestormerBlock | NAFBlock
