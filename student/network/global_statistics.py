"""What blocks compute from all pixels of an image at once, so that its tiles can share it.

Shapes: B batch, H, W height and width, C channels.
"""

from torch import Tensor, nn


class Statistics:
    """By block: [B, C, C] of a `ChannelAttention`, [B, 1, 1, C] of a `NAFBlock`.

    A forward without gradients fills an empty one, and with a filled one uses it instead of its own pixels: what is
    then restored equals that part of the first image. A sample of a larger image gives an estimate only. It is refined
    by forwards of all tiles, each with its `window`: they use what is known, and sum up what they see themselves, until
    `settle` puts the sums in its place.
    """

    def __init__(self) -> None:
        self.known: dict[nn.Module, Tensor] = {}
        self.window: tuple[int, slice, slice] | None = None
        """A tile's height, and its rows and columns that are summed up; at multiples of the network's stride."""
        self._sums: dict[nn.Module, tuple[Tensor, ...]] = {}

    def gathers(self, block: nn.Module) -> bool:
        return self.window is not None and block in self.known

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
        self._sums = {}
