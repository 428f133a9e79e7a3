"""Restormer (arXiv 2111.09881) with the published DATPRL-IR channel plan, written from its description.

Shapes: B batch, H, W height and width, C channels.
"""

from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.network.blocks import RestormerBlock, SpatialConv
from student.network.config import ModelConfig
from student.network.u_shape import Upsample, UShape


def conv(inputs: int, outputs: int) -> SpatialConv:
    return SpatialConv(inputs, outputs, 3, padding=1, bias=False)


class Downsample(nn.Module):
    """3×3 convolution C → C/2, then PixelUnshuffle(2): half the sides, twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels // 2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.pixel_unshuffle(self.conv(x_BHWC).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()


class Restormer(UShape):
    """Encoder, latent, decoder and refinement blocks around one skip connection a level."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        width, *deeper = self.widths

        def stack(count: int, channels: int, heads: int, prompted: bool = True) -> nn.ModuleList:
            return nn.ModuleList(
                RestormerBlock(channels, heads, config.ffn_expansion, self.fusion(channels) if prompted else None)
                for _ in range(count)
            )

        *heads, deepest_heads = config.heads
        self.embed = conv(3, width)
        self.encoder = nn.ModuleList(map(stack, config.encoder_blocks, self.widths, heads, repeat(False)))
        self.down = nn.ModuleList(map(Downsample, self.widths))
        self.latent = stack(config.latent_blocks, self.deepest_channels, deepest_heads)
        self.up = nn.ModuleList(Upsample(conv(2 * channels, 4 * channels)) for channels in self.widths)
        # The finest level keeps the 2·width channels of its concatenation; the others are reduced to their own width.
        self.reduce = nn.ModuleList(nn.Linear(2 * channels, channels, bias=False) for channels in deeper)
        self.decoder = nn.ModuleList(map(stack, config.decoder_blocks, (2 * width, *deeper), heads))
        self.refinement = stack(config.refinement_blocks, 2 * width, heads[0])
        self.output = conv(2 * width, 3)

    def join(self, level: int, x_BHWC: Tensor, skip_BHWC: Tensor) -> Tensor:
        x_BHWC = torch.cat((self.up[level](x_BHWC), skip_BHWC), dim=-1)
        return self.reduce[level - 1](x_BHWC) if level > 0 else x_BHWC
