"""A Restormer block as one node of autograd, for GPUs: its backward pass is written out.

It keeps normalised features and the gate's derivatives, which `recompute` would compute again. Queries and keys are
never normalised pixel by pixel: one product X'X of both holds their scores and lengths, with sums in fp32, and one
product X·M is its gradient. Heads are a mask on [C, C] scores: arithmetic that a GPU has to spare, and no copies.

Shapes: B batch, H, W height and width, P = H·W pixels, C channels, K hidden channels, padded, h heads of c channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from student.network.blocks import RestormerBlock, depthwise_conv
from student.network.fusion import AffineFusion

aten = torch.ops.aten

FP32_SUMS = "dtype" in aten.bmm.overloads()
"""Whether this PyTorch (2.8) has products of bf16 with a result in fp32; on GPUs only."""


def run_block(block: RestormerBlock, weights: tuple[Tensor, ...], x_BHWC: Tensor, *condition: Tensor) -> Tensor:
    """What `block` computes, with its packed weights."""
    x_BHWC, fusion = x_BHWC.to(weights[0].dtype), block.fusion
    source, gain, shift = None, None, None
    if isinstance(fusion, AffineFusion):
        gain, shift = (vector.to(x_BHWC.dtype) for vector in condition)
    elif fusion is not None:
        source = fusion(x_BHWC, *condition)
    with torch.autocast(x_BHWC.device.type, enabled=False):
        return _Block.apply(x_BHWC, source, gain, shift, block.norm1.eps, *weights)


def product(a: Tensor, b: Tensor) -> Tensor:
    """[B, I, J] times [B, J, K] with sums and result in fp32."""
    if a.dtype == torch.float32:
        return torch.bmm(a, b)
    if a.device.type == "cpu" or not FP32_SUMS:
        return torch.bmm(a.float(), b.float())
    return torch.bmm(a, b, out_dtype=torch.float32)


def _norm(x: Tensor, gain_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, ...]:
    return torch.native_layer_norm(x, gain_C.shape, gain_C, bias_C, eps)


def _norm_backward(gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, gain_C: Tensor, bias_C: Tensor) -> Any:
    return aten.native_layer_norm_backward(
        gradient.view_as(x), x, gain_C.shape, mean, rstd, gain_C, bias_C, [True, True, True]
    )


def _conv_backward(gradient_BHWC: Tensor, x_BHWC: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `depthwise_conv`: pixels by channels, and filters."""
    of_x, of_filters, _ = aten.convolution_backward(
        gradient_BHWC.permute(0, 3, 1, 2), x_BHWC.permute(0, 3, 1, 2), filters, None,
        (1, 1), (1, 1), (1, 1), False, (0, 0), len(filters), (True, True, False),
    )  # fmt: skip
    return of_x.permute(0, 2, 3, 1).flatten(0, 2), of_filters


# The compiler fuses what is written apart, and takes no `out`.


def _gate(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(derivatives of gelu(a)·b by a and by b [..., 2, K], gelu(a)·b)."""
    if torch.compiler.is_compiling():
        of_b = F.gelu(a)
        return torch.stack((aten.gelu_backward(b, a), of_b), -2), of_b * b
    slopes = a.new_empty(*a.shape[:-1], 2, a.shape[-1])
    of_a, of_b = slopes.unbind(-2)
    aten.gelu_backward(b, a, grad_input=of_a)
    aten.gelu(a, out=of_b)
    return slopes, of_b * b


def _symmetric(of_scores: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of X'X by the scores in its corner, its transpose added, since X'X is one with its own."""
    channels = of_scores.shape[-1]
    if torch.compiler.is_compiling():
        corner = F.pad((of_scores * scale).to(dtype), (0, channels, channels, 0))
        return corner + corner.mT
    of_gram = of_scores.new_zeros(len(of_scores), 2 * channels, 2 * channels, dtype=dtype)
    torch.mul(of_scores, scale, out=of_gram[:, channels:, :channels])
    of_gram[:, :channels, channels:] = of_gram[:, channels:, :channels].mT
    return of_gram


def _beside(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """[a·b, c·d], batches of products."""
    if torch.compiler.is_compiling():
        return torch.cat((torch.bmm(a, b), torch.bmm(c, d)), -1)
    both = a.new_empty(*a.shape[:-1], b.shape[-1] + d.shape[-1])
    torch.bmm(a, b, out=both[..., : b.shape[-1]])
    torch.bmm(c, d, out=both[..., b.shape[-1] :])
    return both


class _Block(torch.autograd.Function):
    """x + attention(norm1(y)), then that plus feed-forward(norm2(...)); y is `source`, or gain·x + shift, or x.

    `out2` is `of_out2` with columns padded; the gradient is the latter's. That of `temperature_Bhc` is by its
    logarithm.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Tensor | None, gain: Tensor | None, shift: Tensor | None, eps: float,
        gain1: Tensor, bias1: Tensor, qkv: Tensor, filters1: Tensor, out1: Tensor,
        gain2: Tensor, bias2: Tensor, expand: Tensor, filters2: Tensor, of_out2: Tensor, out2: Tensor,
        separate_CC: Tensor, temperature_Bhc: Tensor,
    ) -> Tensor:  # fmt: skip
        channels = x.shape[-1]
        y = source if source is not None else x if gain is None else torch.addcmul(shift, x, gain)
        normed1, mean1, rstd1 = _norm(y, gain1, bias1, eps)
        features1 = F.linear(normed1, qkv)
        qkv_BPC = depthwise_conv(features1, filters1).flatten(1, 2)
        qk, v = qkv_BPC.split((2 * channels, channels), -1)
        gram = product(qk.mT, qk)
        # Scores are [keys, queries]: the output's product then is one of matrices, not of batches of them.
        squares = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-24)
        q_scale, k_scale = squares.rsqrt().split(channels, -1)
        q_scale = (q_scale.view_as(temperature_Bhc) * temperature_Bhc).flatten(1)
        scale = k_scale[:, :, None] * q_scale[:, None]
        scores = torch.addcmul(separate_CC, gram[:, channels:, :channels], scale)
        attention = scores.softmax(1)
        low = attention.to(x.dtype)
        mixing = F.linear(low.flatten(0, 1), out1).view_as(low)
        middle = x + torch.bmm(v, mixing).view_as(x)
        normed2, mean2, rstd2 = _norm(middle, gain2, bias2, eps)
        features2 = F.linear(normed2, expand)
        a, b = depthwise_conv(features2, filters2).chunk(2, -1)
        if not any(ctx.needs_input_grad):
            return F.linear(F.gelu(a).mul_(b), out2).add_(middle)
        slopes, gated = _gate(a, b)
        ctx.save_for_backward(
            x, y, gain, shift, temperature_Bhc, gain1, bias1, qkv, filters1, out1, gain2, bias2, expand, filters2, out2,
            normed1, mean1, rstd1, features1, qkv_BPC, gram, squares, scale, attention, low, mixing,
            middle, normed2, mean2, rstd2, features2, slopes, gated,
        )  # fmt: skip
        ctx.has_source, ctx.hidden = source is not None, of_out2.shape[1]
        return middle + F.linear(gated, out2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (
            x, y, gain, shift, temperature_Bhc, gain1, bias1, qkv, filters1, out1, gain2, bias2, expand, filters2, out2,
            normed1, mean1, rstd1, features1, qkv_BPC, gram, squares, scale, attention, low, mixing,
            middle, normed2, mean2, rstd2, features2, slopes, gated,
        ) = ctx.saved_tensors  # fmt: skip
        channels = x.shape[-1]
        flat = gradient.flatten(0, 2)
        of_out2 = flat.mT @ gated.flatten(0, 2)[:, : ctx.hidden]
        of_gated = flat @ out2
        of_ab = (slopes * of_gated.view_as(gated)[..., None, :]).flatten(-2)
        of_features2, of_filters2 = _conv_backward(of_ab, features2, filters2)
        of_expand = of_features2.mT @ normed2.flatten(0, 2)
        of_middle, of_gain2, of_bias2 = _norm_backward(of_features2 @ expand, middle, mean2, rstd2, gain2, bias2)
        of_middle += gradient

        qk, v = qkv_BPC.split((2 * channels, channels), -1)
        of_mixed = of_middle.flatten(1, 2)
        of_mixing = torch.bmm(v.mT, of_mixed).flatten(0, 1)
        of_out1 = of_mixing.mT @ low.flatten(0, 1)
        of_attention = product(of_mixing[None], out1[None]).view_as(attention)
        of_scores = aten._softmax_backward_data(of_attention, attention, 1, attention.dtype)
        of_gram = _symmetric(of_scores, scale, x.dtype)
        # A score is gram·scale, and a scale falls as the root of a square, in gram's diagonal, grows.
        sums = (of_gram * gram).sum(-1)
        of_gram.diagonal(dim1=1, dim2=2).addcdiv_(sums, squares, value=-1)
        of_temperature = sums[:, :channels].view_as(temperature_Bhc)
        of_qkv = _beside(qk, of_gram, of_mixed, mixing.mT)
        of_features1, of_filters1 = _conv_backward(of_qkv.view_as(features1), features1, filters1)
        of_qkv_weight = of_features1.mT @ normed1.flatten(0, 2)
        of_y, of_gain1, of_bias1 = _norm_backward(of_features1 @ qkv, y, mean1, rstd1, gain1, bias1)
        of_source = of_gain = of_shift = None
        if ctx.has_source:
            of_x, of_source = of_middle, of_y
        elif gain is None:
            of_x = of_middle.add_(of_y)
        else:
            of_shift = of_y.sum_to_size(shift.shape)
            of_gain = (of_y * x).sum_to_size(gain.shape) if gain.ndim else torch.dot(of_y.flatten(), x.flatten())
            of_x = of_middle.addcmul_(of_y, gain)
        return (
            of_x, of_source, of_gain, of_shift, None, of_gain1, of_bias1, of_qkv_weight, of_filters1,
            of_out1, of_gain2, of_bias2, of_expand, of_filters2, of_out2, None, None,
            of_temperature,
        )  # fmt: skip
