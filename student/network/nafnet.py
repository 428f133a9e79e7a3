"""NAFNet (arXiv 2204.04676) as the published DATPRL-IR variant arranges it, written from its description.

Shapes: B batch, H, W height and width, C channels.
"""

from itertools import repeat

from torch import Tensor, nn

from student.network.blocks import NAFBlock, SpatialConv
from student.network.config import ModelConfig
from student.network.u_shape import Upsample, UShape


class NAFNet(UShape):
    """Encoder, middle and decoder blocks; skip connections are added."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)

        def stack(count: int, channels: int, prompted: bool) -> nn.ModuleList:
            return nn.ModuleList(NAFBlock(channels, self.fusion(channels) if prompted else None) for _ in range(count))

        self.embed = SpatialConv(3, config.width, 3, padding=1)
        self.encoder = nn.ModuleList(map(stack, config.encoder_blocks, self.widths, repeat(False)))
        self.down = nn.ModuleList(SpatialConv(channels, 2 * channels, 2, stride=2) for channels in self.widths)
        self.latent = stack(config.latent_blocks, self.deepest_channels, True)
        self.up = nn.ModuleList(Upsample(nn.Linear(2 * c, 4 * c, bias=False)) for c in self.widths)
        self.decoder = nn.ModuleList(map(stack, config.decoder_blocks, self.widths, repeat(True)))
        self.refinement = nn.ModuleList()  # it has none
        self.output = SpatialConv(config.width, 3, 3, padding=1)

    def join(self, level: int, x_BHWC: Tensor, skip_BHWC: Tensor) -> Tensor:
        return self.up[level](x_BHWC) + skip_BHWC
