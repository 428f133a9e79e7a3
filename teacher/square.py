"""The square that a vision tower sees: one image path for every teacher, run where images are decoded. No torch."""

from dataclasses import dataclass

from PIL import Image

LONG_SIDE = 4096
"""Padding to a square allocates the long side squared: a 1 x 100,000 strip would ask for 30 GB. Above this side the
picture is shrunk first; LLaVA-1.5 looks at 336 x 336, so nothing that it could see is lost."""


@dataclass(frozen=True)
class Square:
    """RGB picture of any size → RGB of `side` x `side`, 8 bits: padded with `fill` (`square`), or its middle (`crop`).

    Bit-equal to what LLaVA's image processor makes before it scales and normalises; a square of `side` stays as it is.
    """

    side: int
    padding: str = "square"
    fill: tuple[int, int, int] = (122, 116, 104)
    "CLIP's mean color, as LLaVA-1.5 was trained"

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        if width == height == self.side:
            return image
        if self.padding == "crop":
            return self._middle(image)
        if (long := max(width, height)) > LONG_SIDE:
            size = [max(1, round(side * LONG_SIDE / long)) for side in (width, height)]
            image = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
            width, height = image.size
        long = max(width, height)
        padded = Image.new("RGB", (long, long), self.fill)
        padded.paste(image, ((long - width) // 2, (long - height) // 2))
        return padded.resize((self.side, self.side), Image.Resampling.BICUBIC)

    def _middle(self, image: Image.Image) -> Image.Image:
        short, long = sorted(image.size)
        longer = int(self.side * long / short)
        width, height = (self.side, longer) if image.width <= image.height else (longer, self.side)
        left, top = (width - self.side) // 2, (height - self.side) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        return image.crop((left, top, left + self.side, top + self.side))
