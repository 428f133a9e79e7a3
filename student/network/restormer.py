"""Restormer (arXiv 2111.09881) with the published DATPRL-IR channel plan, written from its description.

Shapes: B batch, H, W height and width, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.network.blocks import RestormerBlock, SpatialConv
from student.network.config import ModelConfig
from student.network.fusion import FUSIONS
from student.network.u_shape import UShape


class Downsample(nn.Module):
    """3×3 convolution C → C/2, then PixelUnshuffle(2): half the sides, twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SpatialConv(channels, channels // 2, 3, padding=1, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.conv(x_BHWC).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()


class Upsample(nn.Module):
    """3×3 convolution C → 2C, then PixelShuffle(2): twice the sides, half the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = SpatialConv(channels, 2 * channels, 3, padding=1, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x_BHWC).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()


class Restormer(UShape):
    """Encoder, latent, decoder and refinement blocks around one skip connection a level."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        levels, width = len(config.encoder_blocks), config.width
        self.checkpoint = config.activation_checkpointing
        self.first_channels, self.deepest_channels = width, width * 2**levels

        def stack(count: int, channels: int, heads: int, prompted: bool) -> nn.ModuleList:
            fuse = FUSIONS[config.fusion] if prompted and config.has_prompts else None
            return nn.ModuleList(
                RestormerBlock(channels, heads, config.ffn_expansion, fuse and fuse(channels, config.fused_dim))
                for _ in range(count)
            )

        self.embed = SpatialConv(3, width, 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(
            stack(config.encoder_blocks[i], width * 2**i, config.heads[i], prompted=False) for i in range(levels)
        )
        self.down = nn.ModuleList(Downsample(width * 2**i) for i in range(levels))
        self.latent = stack(config.latent_blocks, self.deepest_channels, config.heads[levels], prompted=True)
        self.up = nn.ModuleList(Upsample(width * 2 ** (i + 1)) for i in range(levels))
        # The finest level keeps the 2·width channels of its concatenation; the others are reduced to their own width.
        self.reduce = nn.ModuleList(nn.Linear(width * 2 ** (i + 1), width * 2**i, bias=False) for i in range(1, levels))
        self.decoder = nn.ModuleList(
            stack(config.decoder_blocks[i], width * 2 ** max(i, 1), config.heads[i], prompted=True)
            for i in range(levels)
        )
        self.refinement = stack(config.refinement_blocks, 2 * width, config.heads[0], prompted=True)
        self.output = SpatialConv(2 * width, 3, 3, padding=1, bias=False)

    def join(self, level: int, x_BHWC: Tensor, skip_BHWC: Tensor) -> Tensor:
        x_BHWC = torch.cat((self.up[level](x_BHWC), skip_BHWC), dim=-1)
        return self.reduce[level - 1](x_BHWC) if level > 0 else x_BHWC
