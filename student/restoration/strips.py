"""Restormer's block without gradients on a CPU: the same function, a strip of rows at a time.

A block's inner features are 3 to 5.3 times as wide as its input. Made for the whole image they go to memory and back at
each step; in strips they stay in the processor's cache, and no large memory is asked of the system at all. The
depth-wise convolution looks one row up and down: a strip keeps the last two rows of the one before.

Shapes: H, W height and width, P = H·W pixels, R rows of a strip, C channels, c channels a head.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP_BYTES = 2**23
"""Memory of a strip's inner features. Between 4 and 12 MiB made no clear difference at 128² and 256², less was slower
(32 MiB of L3 cache)."""
FEWEST_ROWS = 4


def usable(x: Tensor) -> bool:
    """Whether `x` is to be computed in strips: fp32 on a CPU, outside of training, autocast and torch.compile."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


class Inner(NamedTuple):
    """How a block's inner features are made: depthwise(norm(x)·weightᵀ, filter) for each of the pairs."""

    norm: nn.LayerNorm
    weights: tuple[Tensor, ...]
    """[C', C] each."""
    filters: tuple[Tensor, ...]
    """[C', 1, 3, 3] each."""

    def strips(self, x_HWC: Tensor) -> Iterator[tuple[slice, list[Tensor]]]:
        """The rows of each strip, top to bottom, and its inner features [R·W, C'], one for each weight.

        A strip's rows of `x` are read before it is yielded and never again: its receiver may overwrite them.
        """
        height, width, _ = x_HWC.shape
        row_bytes = width * sum(map(len, self.weights)) * x_HWC.element_size()
        rows = min(height, max(FEWEST_ROWS, STRIP_BYTES // row_bytes))
        # Row i of a buffer is row top - 1 + i of the image; the rows outside of the image are zeros.
        buffers = [x_HWC.new_empty(rows + 2, width, len(weight)) for weight in self.weights]
        known = 0
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            until = min(bottom + 1, height)
            first, last = known - top + 1, until - top + 1
            normed_PC = self.norm(x_HWC[known:until]).flatten(0, 1)
            for buffer, weight in zip(buffers, self.weights, strict=True):
                buffer[:2] = buffer[rows:] if top else 0
                torch.mm(normed_PC, weight.T, out=buffer[first:last].flatten(0, 1))
                if bottom == height:
                    buffer[last] = 0
            known = until
            yield (
                slice(top, bottom),
                [
                    _convolve(buffer[: bottom - top + 2], kernel)
                    for buffer, kernel in zip(buffers, self.filters, strict=True)
                ],
            )


def _convolve(rows_RWC: Tensor, kernel: Tensor) -> Tensor:
    """A depth-wise 3×3 convolution without the first and the last row, [(R - 2)·W, C]."""
    rows_1CRW = rows_RWC[None].permute(0, 3, 1, 2)
    return F.conv2d(rows_1CRW, kernel, padding=(0, 1), groups=len(kernel)).permute(0, 2, 3, 1).flatten(0, 2)


def attend(
    x_HWC: Tensor, fused_HWC: Tensor, inner: Inner, heads: int, result: Tensor, mixing_of: Callable[..., Tensor]
) -> Tensor:
    """Write x + `student.network.blocks.ChannelAttention` of `fused` into `result`; returns the matrix of the values.

    That is [C, C], all that a pixel needs to know of the others (see `mix`), and what `mixing_of` makes of the sums.
    """
    sums = Sums(x_HWC, heads)
    values_HWC = torch.empty_like(x_HWC)
    for rows, (q, k, v) in inner.strips(fused_HWC):
        sums.add(q, k)
        values_HWC[rows] = v.view_as(values_HWC[rows])
    mixing_CC = mixing_of(*sums.of_batch())[0]
    torch.addmm(x_HWC.flatten(0, 1), values_HWC.flatten(0, 1), mixing_CC.T, out=result.flatten(0, 1))
    return mixing_CC


def mix(
    x_HWC: Tensor,
    fused_HWC: Tensor,
    inner: Inner,
    mixing_CC: Tensor,
    result: Tensor,
    heads: int,
    window: tuple[slice, slice] | None = None,
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `attend`, with its result `mixing_CC` known beforehand; `inner` makes the values alone.

    With a `window` of rows and columns `inner` makes queries and keys too, and their sums over it are returned.
    """
    sums = Sums(x_HWC, heads) if window else None
    for rows, (*query_and_key, values) in inner.strips(fused_HWC):
        torch.addmm(x_HWC[rows].flatten(0, 1), values, mixing_CC.T, out=result[rows].flatten(0, 1))
        if sums:
            across, down = x_HWC.shape[1], window[0]
            first, last = (min(max(row - rows.start, 0), rows.stop - rows.start) for row in (down.start, down.stop))
            sums.add(*(x.unflatten(0, (-1, across))[first:last, window[1]].flatten(0, 1) for x in query_and_key))
    return sums.of_batch() if sums else None


class Sums:
    """Over pixels: products of queries and keys within each head, and their squares."""

    def __init__(self, like: Tensor, heads: int):
        per_head = like.shape[-1] // heads
        self.scores = like.new_zeros(heads, per_head, per_head)
        self.q_square, self.k_square = like.new_zeros(like.shape[-1]), like.new_zeros(like.shape[-1])

    def add(self, q_PC: Tensor, k_PC: Tensor) -> None:
        per_head = self.scores.shape[-1]
        for score, q_head, k_head in zip(self.scores, q_PC.split(per_head, -1), k_PC.split(per_head, -1), strict=True):
            score.addmm_(q_head.T, k_head)
        self.q_square += q_PC.square().sum(0)
        self.k_square += k_PC.square().sum(0)

    def of_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [1, heads, c, c], and squares of queries and of keys [1, C]."""
        return self.scores[None], self.q_square[None], self.k_square[None]


def feed_forward_(x_HWC: Tensor, inner: Inner, out: Tensor) -> None:
    """Add `student.network.blocks.GatedFeedForward` of `x` to `x`, in place; `out` [C, C']."""
    for rows, (a, b) in inner.strips(x_HWC):
        x_HWC[rows].flatten(0, 1).addmm_(F.gelu(a).mul_(b), out.T)
