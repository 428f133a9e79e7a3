"""What U-shaped backbones share. Shapes: B batch, H, W height and width, C channels."""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from student.network.blocks import Block
from student.network.config import ModelConfig
from student.network.fusion import FUSIONS, Condition, GatedFusion


class Upsample(nn.Module):
    """`conv` C → 2C, then PixelShuffle(2): twice the sides, half the channels."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv = conv

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x_BHWC).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()


class UShape(nn.Module, ABC):
    """Encoder, latent blocks and decoder around one skip connection a level, then refinement blocks if there are any.

    A backbone builds `embed`, `encoder`, `down`, `latent`, `up`, `decoder`, `refinement` and `output`, and says how a
    skip connection comes in. Levels count from full resolution downwards.
    """

    encoder: nn.ModuleList
    down: nn.ModuleList
    latent: nn.ModuleList
    decoder: nn.ModuleList
    refinement: nn.ModuleList
    output: nn.Module

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.widths = [config.width * 2**level for level in range(len(config.encoder_blocks))]
        self.first_channels, self.deepest_channels = config.width, 2 * self.widths[-1]

    def fusion(self, channels: int) -> GatedFusion | None:
        """A new fusion for a block that takes the prompt in; None where there are no prompts."""
        return FUSIONS[self.config.fusion](channels, self.config.fused_dim) if self.config.has_prompts else None

    @abstractmethod
    def join(self, level: int, x_BHWC: Tensor, skip_BHWC: Tensor) -> Tensor:
        """The features from the level below and this level's skip connection, as `decoder[level]` takes them."""

    def prompted_blocks(self) -> list[Block]:
        """The blocks that take a condition, in the order of `decode`'s `conditions`."""
        return [block for blocks in (self.latent, *reversed(self.decoder), self.refinement) for block in blocks]

    def conditions(self, *inputs: Tensor) -> list[Condition]:
        """What the prompted blocks take in, one each; `inputs` are those of their fusions' `prepare`."""
        return [block.fusion.prepare(*inputs) for block in self.prompted_blocks()]

    def encode(self, x_BHWC: Tensor) -> tuple[Tensor, list[Tensor]]:
        """First features → deepest features, and each level's skip connection, finest first."""
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            for block in blocks:
                x_BHWC = self._run(block, x_BHWC)
            skips.append(x_BHWC)
            x_BHWC = down(x_BHWC)
        return x_BHWC, skips

    def decode(self, x_BHWC: Tensor, skips: list[Tensor], conditions: list[Condition]) -> Tensor:
        """Deepest features, skips and one condition a prompted block → the residual image [B, H, W, 3]."""
        rest = iter(conditions)
        for block in self.latent:
            x_BHWC = self._run(block, x_BHWC, *next(rest))
        for level in reversed(range(len(skips))):
            x_BHWC = self.join(level, x_BHWC, skips[level])
            for block in self.decoder[level]:
                x_BHWC = self._run(block, x_BHWC, *next(rest))
        for block in self.refinement:
            x_BHWC = self._run(block, x_BHWC, *next(rest))
        return self.output(x_BHWC)

    def _run(self, block: Block, x_BHWC: Tensor, *condition: Tensor) -> Tensor:
        if self.config.activation_checkpointing and torch.is_grad_enabled():
            # Blocks draw no random numbers, so there is no generator state to keep.
            return recompute(block, x_BHWC, *condition, use_reentrant=False, preserve_rng_state=False)
        return block(x_BHWC, *condition)
