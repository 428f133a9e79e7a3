"""Products of features that are cheap to compute, without keeping those features for the backward pass.

`torch.utils.checkpoint` would do, but it runs the products again as well: a tenth of a training step. These compute
only the cheap part again, and their gradients equal autograd's bit for bit. torch.compile finds such savings by itself,
and under autocast the checkpoint knows the dtypes: both take the plain ways below.

Shapes: P pixels (any leading dimensions), C channels, K hidden channels.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.utils.checkpoint import checkpoint as recompute

Kept = TypeVar("Kept", Tensor, tuple[Tensor, ...])


def project(x_PC: Tensor, norm: nn.LayerNorm, weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """norm(x) times each of `weights` [C', C]; norm(x) is not kept."""
    if _by_hand(x_PC):
        return _Project.apply(x_PC, norm.weight, norm.bias, norm.eps, *weights)

    def products(x_PC: Tensor) -> tuple[Tensor, ...]:
        normed_PC = norm(x_PC)
        return tuple(F.linear(normed_PC, weight) for weight in weights)

    return _lean(products, x_PC)


def gated_product(a_PK: Tensor, b_PK: Tensor, weight_CK: Tensor) -> Tensor:
    """gelu(a)·b times `weight` [P, C]; gelu(a)·b is not kept, and without gradients it is computed in one tensor."""
    if not torch.is_grad_enabled():
        return F.linear(F.gelu(a_PK).mul_(b_PK), weight_CK)
    if _by_hand(a_PK):
        return _GatedProduct.apply(a_PK, b_PK, weight_CK)
    return _lean(lambda a, b: F.linear(F.gelu(a) * b, weight_CK), a_PK, b_PK)


def _by_hand(x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled(x.device.type)
    )


def _lean(function: Callable[..., Kept], *inputs: Tensor) -> Kept:
    """`function(*inputs)`, keeping only `inputs` for the backward pass."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return recompute(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return function(*inputs)


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
