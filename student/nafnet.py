"""NAFNet (arXiv 2204.04676) as the published DATPRL-IR variant arranges it, written from its description.

Shapes: B batch, H, W height and width, C channels.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from student.blocks import NAFBlock, SpatialConv, run_blocks
from student.fusion import FUSIONS, Condition
from student.model_config import ModelConfig


class Upsample(nn.Module):
    """1×1 convolution C → 2C, then PixelShuffle(2): twice the sides, half the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Linear(channels, 2 * channels, bias=False)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x_BHWC).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).contiguous()


class NAFNet(nn.Module):
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
        self.output = SpatialConv(width, 3, 3, padding=1)

    def prompted_blocks(self) -> list[NAFBlock]:
        """The blocks that take a condition, in the order of `decode`'s `conditions`."""
        return [block for blocks in (self.latent, *reversed(self.decoder)) for block in blocks]

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
            x_BHWC = run(self.decoder[level], self.up[level](x_BHWC) + skips[level])
        return self.output(x_BHWC)
