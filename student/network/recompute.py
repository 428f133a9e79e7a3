"""Products of features that are cheap to compute, without keeping those features for the backward pass.

`torch.utils.checkpoint` would do, but it runs the products again as well: a tenth of a training step. These compute
only the cheap part again, and their gradients equal autograd's bit for bit. Under autocast all of it is done in the
lower precision; `native_layer_norm` keeps its statistics in fp32 there. torch.compile finds such savings by itself.

Shapes: P pixels (any leading dimensions), C channels, K hidden channels.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable


def project(x_PC: Tensor, norm: nn.LayerNorm, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """norm(x) times each of `weights` [C', C]; norm(x) is not kept."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        normed_PC = norm(x_PC)
        return tuple(F.linear(normed_PC, weight) for weight in weights)
    with _lowered(x_PC, norm.weight, norm.bias, *weights) as (x_PC, gain_C, bias_C, *weights):
        return _Project.apply(x_PC, gain_C, bias_C, norm.eps, *weights)


def gated_product(a_PK: Tensor, b_PK: Tensor, weight_CK: Tensor) -> Tensor:
    """gelu(a)·b times `weight` [P, C]; gelu(a)·b is not kept, and without gradients it is computed in one tensor."""
    if not torch.is_grad_enabled():
        return F.linear(F.gelu(a_PK).mul_(b_PK), weight_CK)
    if torch.compiler.is_compiling():
        return F.linear(F.gelu(a_PK) * b_PK, weight_CK)
    with _lowered(a_PK, b_PK, weight_CK) as lowered:
        return _GatedProduct.apply(*lowered)


@contextlib.contextmanager
def _lowered(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """`tensors` in autocast's precision, where that is on, and autocast off; gradients are cast back."""
    device = tensors[0].device.type
    if torch.is_autocast_enabled(device):
        tensors = [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]
    with torch.autocast(device, enabled=False):
        yield list(tensors)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x_PC: Tensor, gain_C: Tensor, bias_C: Tensor, eps: float, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        normed_PC, mean, rstd = torch.native_layer_norm(x_PC, gain_C.shape, gain_C, bias_C, eps)
        ctx.eps = eps
        ctx.save_for_backward(x_PC, mean, rstd, gain_C, bias_C, *weights)
        return tuple(F.linear(normed_PC, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_PC, mean, rstd, gain_C, bias_C, *weights = ctx.saved_tensors
        normed_PC = torch.native_layer_norm(x_PC, gain_C.shape, gain_C, bias_C, ctx.eps)[0].flatten(0, -2)
        flat = [gradient.flatten(0, -2) for gradient in gradients]
        of_weights = [gradient.mT @ normed_PC for gradient in flat]
        # Last first, as autograd does it, so that sums of three round alike.
        of_normed_PC = flat[-1] @ weights[-1]
        for gradient, weight in zip(flat[-2::-1], weights[-2::-1], strict=True):
            of_normed_PC += gradient @ weight
        of_x, of_gain, of_bias = torch.ops.aten.native_layer_norm_backward(
            of_normed_PC.view_as(x_PC), x_PC, gain_C.shape, mean, rstd, gain_C, bias_C, [True, True, True]
        )
        return of_x, of_gain, of_bias, None, *of_weights


class _GatedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, a_PK: Tensor, b_PK: Tensor, weight_CK: Tensor) -> Tensor:
        ctx.save_for_backward(a_PK, b_PK, weight_CK)
        return F.linear(F.gelu(a_PK).mul_(b_PK), weight_CK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_PC: Tensor) -> tuple[Tensor, ...]:
        a_PK, b_PK, weight_CK = ctx.saved_tensors
        activated_PK = F.gelu(a_PK)
        flat_PC = gradient_PC.flatten(0, -2)
        of_weight = flat_PC.mT @ (activated_PK * b_PK).flatten(0, -2)
        of_gated_PK = (flat_PC @ weight_CK).view_as(a_PK)
        of_b = activated_PK.mul_(of_gated_PK)
        of_a = torch.ops.aten.gelu_backward(of_gated_PK.mul_(b_PK), a_PK)
        return of_a, of_b, of_weight
