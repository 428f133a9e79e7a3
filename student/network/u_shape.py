"""The path through a U-shaped backbone, which Restormer and NAFNet share.

Shapes: B batch, H, W height and width, C channels.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from student.network.blocks import Block, run_blocks
from student.network.fusion import Condition


class UShape(nn.Module, ABC):
    """Encoder, latent blocks and decoder around one skip connection a level, then refinement blocks if there are any.

    A backbone builds `embed`, `encoder`, `down`, `latent`, `up`, `decoder`, `refinement` and `output`, and says how a
    skip connection comes in. Levels count from full resolution downwards.
    """

    checkpoint: bool
    """Recompute the blocks in the backward pass."""
    encoder: nn.ModuleList
    down: nn.ModuleList
    latent: nn.ModuleList
    decoder: nn.ModuleList
    refinement: nn.ModuleList
    output: nn.Module

    @abstractmethod
    def join(self, level: int, x_BHWC: Tensor, skip_BHWC: Tensor) -> Tensor:
        """The features from the level below and this level's skip connection, as `decoder[level]` takes them."""

    def prompted_blocks(self) -> list[Block]:
        """The blocks that take a condition, in the order of `decode`'s `conditions`."""
        return [block for blocks in (self.latent, *reversed(self.decoder), self.refinement) for block in blocks]

    def encode(self, x_BHWC: Tensor) -> tuple[Tensor, list[Tensor]]:
        """First features → deepest features, and each level's skip connection, finest first."""
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            x_BHWC = run_blocks(blocks, x_BHWC, [()] * len(blocks), self.checkpoint)
            skips.append(x_BHWC)
            x_BHWC = down(x_BHWC)
        return x_BHWC, skips

    def decode(self, x_BHWC: Tensor, skips: list[Tensor], conditions: list[Condition]) -> Tensor:
        """Deepest features, skips and one condition a prompted block → the residual image [B, H, W, 3]."""
        rest = iter(conditions)

        def run(blocks: nn.ModuleList, x_BHWC: Tensor) -> Tensor:
            return run_blocks(blocks, x_BHWC, [next(rest) for _ in blocks], self.checkpoint)

        x_BHWC = run(self.latent, x_BHWC)
        for level in reversed(range(len(skips))):
            x_BHWC = run(self.decoder[level], self.join(level, x_BHWC, skips[level]))
        return self.output(run(self.refinement, x_BHWC))
