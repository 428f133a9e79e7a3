"""The blocks as a restorer runs them: in strips on a CPU, and tiles with what their image's other pixels say.

Shapes: B batch, H, W height and width, P pixels, C channels, c channels a head.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from student.model import Student
from student.network.blocks import ChannelAttention, NAFBlock, RestormerBlock, add, depthwise_conv
from student.network.recompute import project
from student.restoration import strips


class Statistics:
    """What blocks compute from all pixels of an image at once, so that its tiles can share it: by block, [B, C, C] of
    a Restormer's, [B, 1, 1, C] of a NAFNet's.

    After `start` the first forward without gradients fills `known`, and later ones use it instead of their own pixels:
    what is then restored equals that part of the first image. A sample of a larger image gives an estimate only. It is
    refined by forwards of all tiles, each with its `window`: they use what is known, and sum up what they see
    themselves, until `settle` puts the sums in its place.
    """

    def __init__(self) -> None:
        self.known: dict[nn.Module, Tensor] | None = None
        self.window: tuple[int, slice, slice] | None = None
        """A tile's height, and its rows and columns that are summed up; at multiples of the network's stride."""
        self._sums: dict[nn.Module, tuple[Tensor, ...]] = {}

    def start(self) -> None:
        self.known, self.window, self._sums = {}, None, {}

    def stop(self) -> None:
        """Every forward is of a whole image again."""
        self.known = self.window = None

    def of(self, block: nn.Module) -> Tensor | None:
        return None if self.known is None else self.known.get(block)

    def gathers(self, block: nn.Module) -> bool:
        return self.window is not None and self.of(block) is not None

    def inside(self, x_BHWC: Tensor) -> tuple[slice, slice]:
        """The window's rows and columns at the resolution of `x`."""
        height, *sides = self.window
        scale = height // x_BHWC.shape[1]
        rows, columns = (slice(side.start // scale, side.stop // scale) for side in sides)
        return rows, columns

    def add(self, block: nn.Module, *sums: Tensor) -> None:
        before = self._sums.get(block)
        self._sums[block] = sums if before is None else tuple(a + b for a, b in zip(before, sums, strict=True))

    def settle(self) -> None:
        """What was summed up since the last time is what is known."""
        self.known = {block: block.of_sums(*sums) for block, sums in self._sums.items()}
        self.window, self._sums = None, {}


class _Block(nn.Module):
    def __init__(self, block: RestormerBlock | NAFBlock, statistics: Statistics):
        super().__init__()
        self.block, self.statistics, self.fusion = block, statistics, block.fusion


class RestoringRestormerBlock(_Block):
    """The same function as `RestormerBlock`."""

    def forward(self, x_BHWC: Tensor, *condition: Tensor) -> Tensor:
        in_strips = strips.usable(x_BHWC)
        if self.statistics.known is None and not in_strips:
            return self.block(x_BHWC, *condition)
        fused_BHWC = x_BHWC if self.fusion is None else self.fusion(x_BHWC, *condition)
        if in_strips:
            return self._in_strips(x_BHWC, fused_BHWC)
        x_BHWC = add(x_BHWC, self._attended(fused_BHWC))
        return add(x_BHWC, self.block.ffn(x_BHWC, self.block.norm2))

    def _inner(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Weights and filters of queries, keys and values, or of the values alone, where the rest is known."""
        attention, statistics = self.block.attention, self.statistics
        first = 0 if statistics.of(self) is None or statistics.gathers(self) else 2
        return attention.qkv.weight.chunk(3)[first:], attention.qkv_conv.weight.chunk(3)[first:]

    def _attended(self, x_BHWC: Tensor) -> Tensor:
        attention, statistics, mixing_BCC = self.block.attention, self.statistics, self.statistics.of(self)
        weights, filters = self._inner()
        features = project(x_BHWC, self.block.norm1, weights)
        *query_and_key, v = (depthwise_conv(x, w) for x, w in zip(features, filters, strict=True))
        if statistics.gathers(self):
            rows, columns = statistics.inside(x_BHWC)
            inside = (x[:, rows, columns].flatten(1, 2).float() for x in query_and_key)
            statistics.add(self, *sums_of(attention, *inside))
        if mixing_BCC is None:
            mixing_BCC = statistics.known[self] = attention.mixing(*(x.flatten(1, 2) for x in query_and_key))
        return (v.flatten(1, 2) @ mixing_BCC.to(v.dtype).mT).view(x_BHWC.shape)

    def _in_strips(self, x_BHWC: Tensor, fused_BHWC: Tensor) -> Tensor:
        """Image by image, in the processor's cache."""
        attention, statistics, known_BCC = self.block.attention, self.statistics, self.statistics.of(self)
        window = statistics.inside(x_BHWC) if statistics.gathers(self) else None
        inner = strips.Inner(self.block.norm1, *self._inner())
        expand, filters, ffn_out = self.block.ffn.padded()
        ffn_inner = strips.Inner(self.block.norm2, expand, filters)
        mixings, result_BHWC = [], torch.empty_like(x_BHWC)
        for i, (x, fused, result) in enumerate(zip(x_BHWC, fused_BHWC, result_BHWC, strict=True)):
            if known_BCC is None:
                mixings.append(strips.attend(x, fused, inner, attention.heads, result, self.of_sums))
            else:
                mixing_CC = known_BCC.expand(len(x_BHWC), -1, -1)[i]
                if sums := strips.mix(x, fused, inner, mixing_CC, result, attention.heads, window):
                    statistics.add(self, *sums)
            strips.feed_forward_(result, ffn_inner, ffn_out)
        if statistics.known is not None and known_BCC is None:
            statistics.known[self] = torch.stack(mixings)
        return result_BHWC

    def of_sums(self, scores: Tensor, q_square: Tensor, k_square: Tensor) -> Tensor:
        """What the values are multiplied with, as of all the pixels that were summed up."""
        q_length, k_length = (square.clamp_min(1e-24).sqrt() for square in (q_square, k_square))
        return self.block.attention.mixing_of(scores, q_length, k_length, scores.dtype)


def sums_of(attention: ChannelAttention, q_BPC: Tensor, k_BPC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `of_sums` needs to know of these pixels: scores, and squares of queries and of keys [B, C].

    Without autocast, which would take the products in half precision after all, where these sums overflow.
    """
    with torch.autocast(q_BPC.device.type, enabled=False):
        return attention.scores(q_BPC, k_BPC), q_BPC.square().sum(1), k_BPC.square().sum(1)


class RestoringNAFBlock(_Block):
    """The same function as `NAFBlock`."""

    def forward(self, x_BHWC: Tensor, *condition: Tensor) -> Tensor:
        if self.statistics.known is None:
            return self.block(x_BHWC, *condition)
        y_BHWC, gain_B11C = self.block.gated(x_BHWC, *condition), self.statistics.of(self)
        if gain_B11C is None:
            gain_B11C = self.statistics.known[self] = self.block.channel_gain(y_BHWC.mean((1, 2), keepdim=True))
        if self.statistics.gathers(self):
            rows, columns = self.statistics.inside(x_BHWC)
            inside = y_BHWC[:, rows, columns].float()
            self.statistics.add(self, inside.sum((1, 2), keepdim=True), inside.new_tensor(inside[..., 0].numel()))
        return self.block.scaled(x_BHWC, y_BHWC, gain_B11C)

    def of_sums(self, sums_B11C: Tensor, pixels: Tensor) -> Tensor:
        """The gains, as of all the pixels that were summed up."""
        return self.block.channel_gain(sums_B11C / pixels)


_RESTORING = {RestormerBlock: RestoringRestormerBlock, NAFBlock: RestoringNAFBlock}


def restoring(student: Student) -> tuple[Student, Statistics]:
    """`student` for inference: the same function and the same parameters, in blocks that share the statistics.

    `student` itself stays as it is. Blocks of other kinds are used as they are, and their tiles share nothing.
    """
    statistics, view = Statistics(), _shallow(student)
    view.backbone = _shallow(student.backbone)
    for name, module in student.backbone.named_children():
        view.backbone._modules[name] = _replaced(module, statistics)
    return view, statistics


def _replaced(module: nn.Module, statistics: Statistics) -> nn.Module:
    if isinstance(module, nn.ModuleList):
        return nn.ModuleList(_replaced(one, statistics) for one in module)
    kind = _RESTORING.get(type(module))
    return kind(module, statistics) if kind else module


def _shallow(module: Any) -> Any:
    view = copy.copy(module)
    view._modules = dict(module._modules)
    return view
