"""Restormer as a GPU likes it: few large kernels, and every weight cast and padded once a forward.

The same function and the same parameters as in student/network/blocks.py, whose formulation suits a CPU. Weights of all
blocks are packed together, conditions of equal width computed together, and a block is one node of autograd
(student/network/block_node.py).

Shapes: B batch, C channels, h heads, c channels a head, D dimension of the prompt; N blocks that are alike.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from student.network.block_node import run_block
from student.network.blocks import RestormerBlock
from student.network.fusion import BroadcastFusion, Condition
from student.network.restormer import Restormer

DEVICES = {"cuda"}
DTYPES = (torch.float32, torch.bfloat16)
"""fp16 keeps the other formulation, which stays within its range."""
TILE = 8
"""Tensor cores read 16 bytes at a time: hidden channels are padded to a multiple of this."""
OFF = -1e9
"""Added to the scores between heads. Finite, so that 0 times it is 0."""


def formulate(backbone: nn.Module, device: torch.device) -> None:
    """From now on `backbone` computes as suits `device`; what it computes, and its parameters, stay."""
    if device.type in DEVICES and type(backbone) is Restormer:
        backbone.__class__ = GpuRestormer


class GpuRestormer(Restormer):
    """A Restormer whose weights are packed at the start of a forward; compiled, block by block: the compiler fuses
    casts. All gradients come at the end of the backward pass, so DDP's exchange does not overlap with it."""

    _packed: dict[nn.Module, tuple[Tensor, ...]] = {}

    def encode(self, x_BHWC: Tensor) -> tuple[Tensor, list[Tensor]]:
        self._packed, dtype = {}, computed(x_BHWC)
        widest = 4 * self.config.width * self.config.ffn_expansion
        indexable = x_BHWC[..., 0].numel() * widest < 2**31  # int32 in some kernels
        if dtype in DTYPES and indexable and not torch.compiler.is_compiling():
            blocks = [block for block in self.modules() if type(block) is RestormerBlock]
            self._packed = pack(blocks, dtype, len(x_BHWC))
        return super().encode(x_BHWC)

    def decode(self, x_BHWC: Tensor, skips: list[Tensor], conditions: list[Condition]) -> Tensor:
        try:
            return super().decode(x_BHWC, skips, conditions)
        finally:
            self._packed = {}

    def conditions(self, *inputs: Tensor) -> list[Condition]:
        fusions = [block.fusion for block in self.prompted_blocks()]
        if not self._packed or not all(type(fusion) is BroadcastFusion for fusion in fusions):
            return super().conditions(*inputs)
        return broadcast_conditions(fusions, self._packed[self.latent[0]][0].dtype, *inputs)

    def _run(self, block: Any, x_BHWC: Tensor, *condition: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if (dtype := computed(x_BHWC)) in DTYPES:
                (weights,) = pack([block], dtype, len(x_BHWC)).values()
                block = partial(run_block, block, weights)
        elif weights := self._packed.get(block):
            block = partial(run_block, block, weights)
        return super()._run(block, x_BHWC, *condition)


def computed(x: Tensor) -> torch.dtype:
    """In which products of `x` are computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def pack(blocks: Sequence[RestormerBlock], dtype: torch.dtype, batch: int) -> dict[nn.Module, tuple[Tensor, ...]]:
    """Each block's weights as matrices in `dtype`, hidden channels padded; all of them cast by one kernel or a few."""
    sources, halves = [], []
    for block in blocks:
        attention, ffn = block.attention, block.ffn
        sources += [block.norm1.weight, block.norm1.bias, attention.qkv.weight, attention.qkv_conv.weight]
        sources += [attention.out.weight, block.norm2.weight, block.norm2.bias]
        sources += [ffn.expand.weight, ffn.conv.weight, ffn.out.weight]
        halves += [0] * 7 + [ffn.hidden, ffn.hidden, 0]
    packed = list(_Pack.apply(dtype, halves, *sources))
    each = len(packed) // len(blocks)
    weights = {block: packed[i * each : (i + 1) * each] for i, block in enumerate(blocks)}
    alike = defaultdict(list)
    for block in blocks:
        alike[*weights[block][-1].shape, block.attention.heads].append(block)
    for (channels, hidden, heads), group in alike.items():
        temperature_Nh = torch.stack([block.attention.temperature for block in group])
        if temperature_Nh.requires_grad:  # a block gives the gradient by its logarithm
            temperature_Nh.register_hook(partial(_by_the_value, temperature_Nh.detach()))
        temperatures = temperature_Nh[:, None, :, None].expand(-1, batch, -1, channels // heads)
        # Columns cannot be padded while they are cast: rows would lie apart.
        padded = F.pad(torch.stack([weights[block][-1].detach() for block in group]), (0, -hidden % TILE))
        head_C = torch.arange(channels, device=padded.device) // (channels // heads)
        separate = torch.where(head_C[:, None] == head_C, 0.0, OFF)
        for block, *more in zip(group, padded, temperatures.unbind(), strict=True):
            weights[block] += [more[0], separate, more[1]]
    return {block: tuple(found) for block, found in weights.items()}


def _by_the_value(value: Tensor, gradient: Tensor) -> Tensor:
    return gradient / value


class _Pack(torch.autograd.Function):
    """Copies in another dtype, [rows, columns]; a weight of two halves of n rows each gets zero rows behind both."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, halves: list[int], *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.halves, ctx.like = halves, weights
        shapes = [(2, n + -n % TILE) if n else (1, len(weight)) for n, weight in zip(halves, weights, strict=True)]
        sizes = [a * b * weight[0].numel() for (a, b), weight in zip(shapes, weights, strict=True)]
        flat = weights[0].new_zeros(sum(size + -size % TILE for size in sizes), dtype=dtype)
        copies, start = [], 0
        for (a, b), size, weight in zip(shapes, sizes, weights, strict=True):
            copies.append(flat[start : start + size].view(a * b, *weight.shape[1:]))
            start += size + -size % TILE
        torch._foreach_copy_(_parts(copies, halves), _parts(weights, halves))
        return tuple(copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        given = [(n, g, torch.empty_like(w)) for n, g, w in zip(ctx.halves, gradients, ctx.like, strict=True)]
        halves, sources, results = zip(*given, strict=True)
        torch._foreach_copy_(_parts(results, halves), _parts(sources, halves))
        return None, None, *results


def _parts(weights: Sequence[Tensor], halves: Sequence[int]) -> list[Tensor]:
    """The halves without their padding, and whole weights, as matrices or vectors: of equal strides, whatever the
    memory format, since one kernel copies only those."""
    parts = []
    for weight, n in zip(weights, halves, strict=True):
        matrix = weight.view(len(weight), -1) if weight.ndim > 1 else weight
        parts += [half[:n] for half in matrix.unflatten(0, (2, -1))] if n else [matrix]
    return parts


def broadcast_conditions(fusions: Sequence[BroadcastFusion], dtype: torch.dtype, fused_BD: Tensor) -> list[Condition]:
    """`BroadcastFusion.prepare` of all, those of equal width together, cast to `dtype`."""
    alike: dict[int, list[int]] = defaultdict(list)
    for i, fusion in enumerate(fusions):
        alike[fusion.out.out_features].append(i)
    normed_BD = F.layer_norm(fused_BD, fused_BD.shape[-1:])
    found: dict[int, Condition] = {}
    for places in alike.values():
        group = [fusions[i] for i in places]

        def stacked(name: str, group: list[BroadcastFusion] = group) -> Tensor:
            return torch.stack([fusion.get_parameter(name) for fusion in group])

        w_feature_N, w_prompt_N = stacked("gate").softmax(-1).unbind(-1)
        token_NBD = torch.addcmul(stacked("norm.bias")[:, None], normed_BD, stacked("norm.weight")[:, None])
        value_NCB = torch.baddbmm(stacked("value.bias")[..., None], stacked("value.weight"), token_NBD.mT)
        value_NCB = value_NCB * w_prompt_N[:, None, None]
        shift_NCB = torch.baddbmm(stacked("out.bias")[..., None], stacked("out.weight"), value_NCB)
        shifts = shift_NCB.mT.to(dtype)[:, :, None, None].unbind()
        found |= zip(places, zip(w_feature_N.to(dtype).unbind(), shifts, strict=True), strict=True)
    return [found[i] for i in range(len(fusions))]
