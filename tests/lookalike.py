"""Miniature look-alikes of the data sets of the paper: the real folders and file names, a few tiny images in each."""

from pathlib import Path

import numpy as np
from PIL import Image

MILLI = ("{:04d}.png", "{:04d}.png")
SIX = [  # gt folder, lq folder, names of gt and lq
    ("DF2K/train", "DF2K/train_x4_bicubic", *MILLI),
    ("div2k_val/DIV2K_valid_HR_sp", "div2k_val/DIV2K_test_LR_bicubicx4_sp", *MILLI),
    ("ucmerced/train/train_hr", "ucmerced/train/train_bicubic_x4", "agricultural{:02d}.tif", "agricultural{:02d}.tif"),
    ("ucmerced/test/test_hr", "ucmerced/test/test_bicubic_x4", "airplane{:02d}.tif", "airplane{:02d}.tif"),
    ("MRI/HQ_png", "MRI/LQ_png", "IXI{:03d}-Guys-0828-T2_50.png", "IXI{:03d}-Guys-0828-T2_50.png"),
    ("MRI/test/HQ_png", "MRI/test/LQ_png", "IXI{:03d}-HH-1328-T2_50.png", "IXI{:03d}-HH-1328-T2_50.png"),
    ("Rain100L/norain", "Rain100L/rain", "norain-{}.png", "rain-{}.png"),
    ("Rain100L/target", "Rain100L/input", "{}.png", "{}.png"),
    ("CUHK_CR1/train/label", "CUHK_CR1/train/cloud", *MILLI),
    ("CUHK_CR1/test/label", "CUHK_CR1/test/cloud", *MILLI),
    ("CT/HQ_png", "CT/LQ_png", "L067_{:03d}.png", "L067_{:03d}.png"),
    ("CT/test/HQ_png", "CT/test/LQ_png", "L506_{:03d}.png", "L506_{:03d}.png"),
]
GOPRO = [
    ("GoPro/train/sharp", "GoPro/train/blur", "GOPR0372_07_00-{:06d}.png", "GOPR0372_07_00-{:06d}.png"),
    ("GoPro/target", "GoPro/input", "GOPR0384_11_00-{:06d}.png", "GOPR0384_11_00-{:06d}.png"),
]
PET = [("PET/HQ_png", "PET/LQ_png", *MILLI), ("PET/test/HQ_png", "PET/test/LQ_png", *MILLI)]
RICE = [("RICE1/train/label", "RICE1/train/cloud", *MILLI), ("RICE1/test/label", "RICE1/test/cloud", *MILLI)]
RAIN = SIX[6:8]
HAZE = [
    ("RESIDE-OTS/clear", "RESIDE-OTS/Haze/part1", "{:04d}.jpg", "{:04d}_0.8_0.1.jpg"),
    ("RESIDE-OTS/clear", "RESIDE-OTS/Haze/part2", "{:04d}.jpg", "{:04d}_1_0.2.jpg"),
    ("SOTS/target", "SOTS/input", "{:04d}.png", "{:04d}_0.8_0.2.jpg"),
]
NOISE = [("WED", None, "{:05d}.bmp", ""), ("BSD400", None, "test_{:03d}.png", ""), ("CBSD68", None, "{:04d}.png", "")]
LOL = [("LOL/our485/high", "LOL/our485/low", "{}.png", "{}.png"), ("LOL/high", "LOL/low", "{}.png", "{}.png")]
KINDS = "haze haze_rain haze_snow low low_haze low_haze_rain low_haze_snow low_rain low_snow rain snow".split()
CDD = [(f"CDD-11_{split}/clear", f"CDD-11_{split}/{kind}", *MILLI) for split in ("train", "test") for kind in KINDS]

TREES = {
    "md-6t": SIX,
    "md-7t": SIX + GOPRO,
    "md-8t": SIX + GOPRO + PET,
    "md-9t": SIX + GOPRO + PET + RICE,
    "natural-3t": HAZE + RAIN + NOISE,
    "natural-5t": HAZE + RAIN + NOISE + GOPRO + LOL,
    "cdd11": CDD,
}


def make_tree(root: Path, recipe: str, images: int = 12, size: int = 40) -> Path:
    """The folders of a recipe below `root`, `images` files in each; medical ones are gray. Returns `root`."""
    for gt_folder, lq_folder, gt_name, lq_name in TREES[recipe]:
        for number in range(1, images + 1):
            for folder, name, softer in ((gt_folder, gt_name, 1.0), (lq_folder, lq_name, 0.6)):
                if folder is not None and not (file := root / folder / name.format(number)).exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    gray = folder.split("/")[0] in ("MRI", "CT", "PET")
                    scene(f"{gt_folder}/{number}", size, softer, gray).save(file)
    return root


def scene(name: str, size: int, contrast: float, gray: bool) -> Image.Image:
    """A few waves, the same for the same name."""
    rng = np.random.default_rng(list(name.encode()))
    y, x = (side[..., None] for side in np.mgrid[:size, : size + 4])
    frequency, phase = rng.uniform(0.1, 0.7, (2, 3)), rng.uniform(0, 6, 3)
    pixels = 0.5 + 0.4 * contrast * np.sin(y * frequency[0] + x * frequency[1] + phase)
    image = Image.fromarray((pixels * 255).astype(np.uint8))
    return image.convert("L") if gray else image
