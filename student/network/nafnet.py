"""NAFNet (arXiv 2204.04676) as the published DATPRL-IR variant arranges it, written from its description.

Shapes: B batch, H, W height and width, C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from student.network.blocks import NAFBlock, SpatialConv
from student.network.config import ModelConfig
from student.network.fusion import FUSIONS
from student.network.u_shape import UShape


class Upsample(nn.Module):
    """1×1 convolution C → 2C, then PixelShuffle(2): twice the sides, half the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Linear(channels, 2 * channels, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x_BHWC).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()


class NAFNet(UShape):
    """Encoder, middle and decoder blocks; skip connections are added."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        levels, width = len(config.encoder_blocks), config.width
        self.checkpoint = config.activation_checkpointing
        self.first_channels, self.deepest_channels = width, width * 2**levels

        def stack(count: int, channels: int, prompted: bool) -> nn.ModuleList:
            fuse = FUSIONS[config.fusion] if prompted and config.has_prompts else None
            return nn.ModuleList(NAFBlock(channels, fuse and fuse(channels, config.fused_dim)) for _ in range(count))

        self.embed = SpatialConv(3, width, 3, padding=1)
        self.encoder = nn.ModuleList(
            stack(config.encoder_blocks[i], width * 2**i, prompted=False) for i in range(levels)
        )
        self.down = nn.ModuleList(SpatialConv(width * 2**i, width * 2 ** (i + 1), 2, stride=2) for i in range(levels))
        self.latent = stack(config.latent_blocks, self.deepest_channels, prompted=True)
        self.up = nn.ModuleList(Upsample(width * 2 ** (i + 1)) for i in range(levels))
        self.decoder = nn.ModuleList(
            stack(config.decoder_blocks[i], width * 2**i, prompted=True) for i in range(levels)
        )
        self.refinement = nn.ModuleList()  # it has none
        self.output = SpatialConv(width, 3, 3, padding=1)

    def join(self, level: int, x_BHWC: Tensor, skip_BHWC: Tensor) -> Tensor:
        return self.up[level](x_BHWC) + skip_BHWC
