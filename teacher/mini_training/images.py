"""Clean images for the mini teacher, and the random parts of them that it is shown."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from teacher.mini_training.answers import KINDS, SEEN

_STORED = 512  # long side in pixels at which a training image is kept in memory
_SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


def load_split(samples: Path, split: str) -> list[tuple[Image.Image, str]]:
    """Distinct clean images of `split` with their kind, from the samples' tree and its `sources.json`."""
    if not (samples / "sources.json").is_file():
        raise FileNotFoundError(f"{samples}/sources.json is missing; run `python -m pipeline.samples` first")
    sources = json.loads((samples / "sources.json").read_text())
    images: dict[str, tuple] = {}
    for path in sorted(samples.glob(f"*/{split}/gt/*.png")):
        data = path.read_bytes()
        images.setdefault(data, (_rgb(io.BytesIO(data)), sources[path.relative_to(samples).as_posix()]["kind"]))
    if not images:
        raise FileNotFoundError(f"no images under {samples}/*/{split}/gt; run `python -m pipeline.samples` first")
    return list(images.values())


def load_folders(folders: Iterable[str]) -> list[list[tuple[Image.Image, str]]]:
    """Images of each `KIND=DIRECTORY`, with their kind. Raises `ValueError` for an unknown kind."""
    loaded = []
    for pair in folders:
        kind, _, folder = pair.partition("=")
        if kind not in KINDS or not folder:
            raise ValueError(f"{pair!r}: write KIND=DIRECTORY with a kind out of {', '.join(KINDS)}")
        paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _SUFFIXES)
        if not paths:
            raise FileNotFoundError(f"{pair}: no images ({', '.join(sorted(_SUFFIXES))}) under {folder}")
        images = [_rgb(path) for path in paths]
        for image in images:
            image.thumbnail((_STORED, _STORED), Image.Resampling.BICUBIC)
        loaded.append([(image, kind) for image in images])
    return loaded


def _rgb(source: Path | io.BytesIO) -> Image.Image:
    """Slices of scans come with 16 bits, whose range Pillow would cut off instead of scaling it."""
    with Image.open(source) as image:
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        return image.convert("RGB")


def draw_crop(image: Image.Image, kind: str, rng: np.random.Generator, augment: bool) -> Image.Image:
    """A random part of `image`, `SEEN` pixels on its long side; every fourth one the whole image."""
    if augment and kind in ("mri", "ct") and rng.random() < 0.5:
        image = _bent(image, rng)
    if augment and kind != "photograph" and rng.random() < 0.3:
        fill = tuple(int(value) for value in np.asarray(image)[0, 0]) if kind == "satellite" else 0
        image = image.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, fillcolor=fill)
    for _ in range(10):
        crop = _part(image, kind, rng)
        # A plain patch says nothing of its kind: sea and desert look so from space, a wall looks so from nearby.
        if np.asarray(crop).std() > (0 if kind == "satellite" else 6):
            break
    scale = SEEN / max(crop.size)
    crop = crop.resize([max(1, round(side * scale)) for side in crop.size], Image.Resampling.BICUBIC)
    if not augment:
        return crop
    if rng.random() < 0.15:  # enlarged from few pixels
        few = [max(4, round(side * rng.uniform(0.35, 0.8))) for side in crop.size]
        crop = crop.resize(few, Image.Resampling.BICUBIC).resize(crop.size, Image.Resampling.BICUBIC)
    pixels_HWC = _augmented(np.asarray(crop, np.float32) / 255, kind, rng)
    return Image.fromarray(np.rint(np.clip(pixels_HWC, 0, 1) * 255).astype(np.uint8))


def _part(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.25:
        return image
    scan = kind not in ("photograph", "satellite")
    scale = rng.uniform(0.5 if scan else 0.35, 1.0)  # of both sides, and each a little more by itself
    box = []
    for side in image.size:
        part = min(side, max(24, round(side * min(1, scale * rng.uniform(0.8, 1.25)))))
        start = int(rng.integers(0, side - part + 1))
        box.append((start, start + part))
    return image.crop((box[0][0], box[1][0], box[0][1], box[1][1]))


def _bent(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Another body: the points of a 4 x 4 grid moved by up to a twelfth of the side."""
    grid_XY2 = np.stack(np.meshgrid(np.linspace(0, image.width, 4), np.linspace(0, image.height, 4), indexing="ij"), -1)
    moved_XY2 = grid_XY2 + rng.uniform(-1, 1, grid_XY2.shape) * np.array(image.size) / 12
    mesh = []
    for x in range(3):
        for y in range(3):
            box = (*grid_XY2[x, y].astype(int), *grid_XY2[x + 1, y + 1].astype(int))
            corners = [moved_XY2[x, y], moved_XY2[x, y + 1], moved_XY2[x + 1, y + 1], moved_XY2[x + 1, y]]
            mesh.append((tuple(map(int, box)), tuple(np.concatenate(corners).tolist())))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _augmented(pixels_HWC: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Other light, colors, contrasts and noise, such as a picture of the same kind may have.

    Satellite images nearly keep their palette, which tells a sea from a blue wall behind a person.
    """
    if rng.random() < 0.5:
        pixels_HWC = pixels_HWC[:, ::-1]
    if kind == "photograph":
        return _photograph(pixels_HWC, rng)
    if rng.random() < 0.5:
        pixels_HWC = pixels_HWC[::-1]
    if rng.random() < 0.5:
        pixels_HWC = pixels_HWC.swapaxes(0, 1)
    return _satellite(pixels_HWC, rng) if kind == "satellite" else _scan(pixels_HWC, kind, rng)


def _photograph(pixels_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.1:
        pixels_HWC = pixels_HWC[..., rng.permutation(3)]
    if rng.random() < 0.1:
        pixels_HWC = _on_background(pixels_HWC, rng)
    if rng.random() < 0.5:
        gray_HW1 = pixels_HWC.mean(-1, keepdims=True)
        pixels_HWC = gray_HW1 + (pixels_HWC - gray_HW1) * rng.uniform(0.3, 1.7)
        pixels_HWC = pixels_HWC * rng.uniform(0.85, 1.15, 3)  # white balance
    if rng.random() < 0.2:
        pixels_HWC = _gray(pixels_HWC)
    return _light(pixels_HWC, 1.0, rng)


def _satellite(pixels_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    pixels_HWC = pixels_HWC * np.exp(rng.uniform(-0.1, 0.1, 3))  # another season or soil
    if rng.random() < 0.5:
        gray_HW1 = pixels_HWC.mean(-1, keepdims=True)
        pixels_HWC = gray_HW1 + (pixels_HWC - gray_HW1) * rng.uniform(0.5, 1.4)
    if rng.random() < 0.04:
        pixels_HWC = _gray(pixels_HWC)  # panchromatic
    return _light(pixels_HWC, 0.5, rng)


def _scan(pixels_HWC: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Other contrasts and coils for MRI, other windows for CT; a wider field of view and noise for both."""
    gray_HW = pixels_HWC[..., 0]
    height, width = gray_HW.shape
    if rng.random() < 0.2:  # more black around it
        rows, columns = rng.integers(0, height // 3 + 1, 2), rng.integers(0, width // 3 + 1, 2)
        padded = np.pad(gray_HW, (rows, columns), constant_values=min(gray_HW[0, 0], gray_HW[-1, -1]))
        image = Image.fromarray(np.rint(padded * 255).astype(np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        gray_HW = np.asarray(image, np.float32) / 255
    if kind.startswith("mri"):
        if rng.random() < 0.5:  # another contrast: tissues change their order, air stays black
            levels = np.concatenate([[0.0], rng.random(4)])
            mapped_HW = np.interp(gray_HW, (0.0, 0.12, 0.4, 0.7, 1.0), levels)
            gray_HW = gray_HW + rng.uniform(0.3, 1.0) * (mapped_HW - gray_HW)
        if rng.random() < 0.5:  # receive coils
            field = Image.fromarray(rng.uniform(0.4, 1.3, (3, 3)).astype(np.float32))
            gray_HW = gray_HW * np.asarray(field.resize((width, height), Image.Resampling.BICUBIC))
    elif rng.random() < 0.5:
        low, high = rng.uniform(-0.25, 0.3), rng.uniform(0.7, 1.4)
        gray_HW = (gray_HW - low) / (high - low)
    gray_HW = _light(np.clip(gray_HW, 0, 1), 1.0, rng)
    if rng.random() < 0.4:
        noise_2HW = rng.normal(0, rng.uniform(0, 0.06), (2, height, width))
        gray_HW = np.hypot(gray_HW + noise_2HW[0], noise_2HW[1]) if kind.startswith("mri") else gray_HW + noise_2HW[0]
    return np.repeat(gray_HW[..., None], 3, axis=-1)


def _light(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.6:
        pixels = np.clip(pixels, 0, 1) ** np.exp(strength * rng.uniform(-0.5, 0.5))
    if rng.random() < 0.6:
        pixels = pixels * np.exp(strength * rng.uniform(-0.7, 0.25))
    return pixels


def _gray(pixels_HWC: np.ndarray) -> np.ndarray:
    luma_HW = pixels_HWC @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(luma_HW[..., None], 3, axis=-1)


def _on_background(pixels_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture pasted over a part of a smooth random gradient."""
    height, width, _ = pixels_HWC.shape
    corners = Image.fromarray((rng.random(3) * 255 + rng.normal(0, 25, (2, 2, 3))).clip(0, 255).astype(np.uint8))
    canvas_HWC = np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    left, top = rng.integers(0, width // 2 + 1), rng.integers(0, height // 2 + 1)
    canvas_HWC = canvas_HWC.copy()
    canvas_HWC[top:, left:] = pixels_HWC[top:, left:]
    return canvas_HWC
