"""What the mini teacher is taught to say: sentences that a program derives from the pixels and from the kind of image.

`attributes` reads named properties off the picture as the model sees it, shrunk to `SEEN` pixels; `answers` puts them
into sentences; `contradictions` finds answers that cannot be true of one picture.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

KINDS = ("photograph", "satellite", "mri", "ct")
SEEN = 64
"""Long side in pixels at which properties are measured: the model sees no more, whatever the picture's size."""

# The first wording is the pipeline's default; the others teach that a question may be put differently.
QUESTIONS = {
    "content": (
        "What is the content of this image? Answer in one sentence.",
        "Describe the content of this image.",
        "What does the image show?",
    ),
    "color": (
        "How rich are the colors of this image? Answer in one sentence.",
        "Describe the color richness of this image.",
        "What are the colors like?",
    ),
    "object": (
        "What is the category of the main object in this image? Answer in one sentence.",
        "Which object category does this image show?",
        "What is the main object?",
    ),
    "brightness": (
        "How bright is this image? Answer in one sentence.",
        "Describe the brightness of this image.",
        "Is the image dark or bright?",
    ),
    "viewpoint": (
        "From which camera viewpoint was this image taken? Answer in one sentence.",
        "Describe the camera viewpoint of this image.",
        "What is the viewpoint?",
    ),
}
DEFAULT_PROMPTS = {name: wordings[0] for name, wordings in QUESTIONS.items()}
_SUBJECT = {
    "photograph": "{tone} photograph of an everyday scene, {layout}",
    "satellite": "a satellite image of the Earth that shows {cover}",
    "mri": "a magnetic resonance scan of a human body, {frame}",
    "ct": "a computed tomography scan of a human body, {frame}",
}
_OBJECT = {
    "photograph": "an everyday scene or thing in a photograph",
    "satellite": "the surface of the Earth",
    "mri": "a part of a human body in a magnetic resonance scan",
    "ct": "a part of a human body in a computed tomography scan",
}
_VIEWPOINT = {
    "photograph": "The photograph was taken from nearby with an ordinary camera.",
    "satellite": "It was taken from space, looking straight down.",
    "mri": "It is a cross-sectional view by a magnetic resonance scanner.",
    "ct": "It is a cross-sectional view by a computed tomography scanner.",
}
_DETAIL = ("smooth areas", "some detail", "much fine detail")
_LAYOUT = ("plain in its upper part", "plain in its lower part", "plain towards its edges", "busy all over")
_COVER = ("open water", "a coast", "snow and ice", "green land", "desert", "bare land")
_FRAME = ("on a black background", "that fills the picture")
_RICHNESS = ("missing, it is black and white", "muted", "rich and vivid")
_NAMES = (
    "black", "gray", "white", "red", "orange", "brown", "beige", "yellow", "green", "turquoise", "blue", "purple",
    "pink",
)  # fmt: skip
_BRIGHTNESS = ("very dark", "dark", "moderately bright", "bright", "very bright")
_CONTRAST = ("low", "moderate", "strong")
VALUES = {
    "kind": KINDS, "detail": _DETAIL, "layout": _LAYOUT, "cover": _COVER, "frame": _FRAME, "richness": _RICHNESS,
    "color": _NAMES, "second color": ("none", *_NAMES), "brightness": _BRIGHTNESS, "contrast": _CONTRAST,
}  # fmt: skip
"""Attribute -> its possible values; `layout`, `cover` and `frame` are said of one kind of image each."""


def attributes(image_HWC: np.ndarray, kind: str) -> dict[str, str | None]:
    """Name -> value out of `VALUES`, or None where it does not apply; `image_HWC` is RGB in [0, 1] of any size."""
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
    image_HWC = as_seen(image_HWC)
    luma_HW, chroma_HW = _luma(image_HWC), image_HWC.max(-1) - image_HWC.min(-1)
    edges_HW = sum(np.abs(slope) for slope in np.gradient(np.pad(luma_HW, 1, mode="edge")))[1:-1, 1:-1]
    names = _NAMES[:3] if chroma_HW.mean() < 0.01 else _NAMES
    share = np.bincount(_color_names(image_HWC, chroma_HW).ravel(), minlength=len(_NAMES))[: len(names)]
    first, second = np.argsort(-share, kind="stable")[:2]
    scan = kind not in ("photograph", "satellite")
    return {
        "kind": kind,
        "detail": _DETAIL[np.searchsorted((0.035, 0.085), edges_HW.mean())],
        "layout": _layout(edges_HW) if kind == "photograph" else None,
        "cover": _cover(image_HWC) if kind == "satellite" else None,
        "frame": _FRAME[int((luma_HW < 0.08).mean() < 0.25)] if scan else None,
        "richness": _RICHNESS[np.searchsorted((0.01, 0.17), chroma_HW.mean())],
        "color": _NAMES[first],
        "second color": _NAMES[second] if share[second] > 0.25 * share.sum() else "none",
        "brightness": _BRIGHTNESS[np.searchsorted((0.12, 0.28, 0.5, 0.7), luma_HW.mean())],
        "contrast": _CONTRAST[np.searchsorted((0.12, 0.24), luma_HW.std())],
    }


def answers(image_HWC: np.ndarray, kind: str) -> dict[str, str]:
    """Perspective -> sentence, for an RGB image in [0, 1] of one of `KINDS`."""
    return sentences(attributes(image_HWC, kind))


def sentences(found: dict[str, str | None]) -> dict[str, str]:
    """Perspective -> sentence, from `attributes`."""
    kind = found["kind"]
    tone = "a black and white" if found["richness"] == _RICHNESS[0] else "a color"
    subject = _SUBJECT[kind].format(tone=tone, **found)
    second = "" if found["second color"] in ("none", found["color"]) else f" and {found['second color']}"
    return {
        "content": f"The image is {subject}, with {found['detail']}.",
        "color": f"The colors are {found['richness']}, mostly {found['color']}{second}.",
        "object": f"The main object is {_OBJECT[kind]}.",
        "brightness": f"The image is {found['brightness']}, with {found['contrast']} contrast.",
        "viewpoint": _VIEWPOINT[kind],
    }


def contradictions(said: dict[str, str]) -> list[str]:
    """What cannot be true together in the answers about one image: other kinds, or colors of a gray photograph."""
    found = []
    kinds = {name: kind_named(said[name]) for name in ("content", "object", "viewpoint")}
    if len(set(kinds.values())) > 1 or None in kinds.values():
        found.append(", ".join(f"{name}: {kind}" for name, kind in kinds.items()))
    gray = _RICHNESS[0] in said["color"]
    if kinds["content"] == "photograph" and gray != ("black and white" in said["content"]):
        found.append(f"content: {'gray' if not gray else 'color'}, color: {'gray' if gray else 'color'}")
    return found


def kind_named(text: str) -> str | None:
    """The one of `KINDS` that a sentence about content, object or viewpoint names, or None."""
    if "magnetic resonance" in text:
        return "mri"
    if "computed tomography" in text:
        return "ct"
    if "satellite" in text or "from space" in text or "of the Earth" in text:
        return "satellite"
    return "photograph" if "photograph" in text else None


def as_seen(image_HWC: np.ndarray) -> np.ndarray:
    """`image_HWC` at `SEEN` pixels on its long side, in the 8-bit steps that the model gets."""
    height, width = image_HWC.shape[:2]
    if max(height, width) != SEEN:
        size = [max(1, round(side * SEEN / max(height, width))) for side in (width, height)]
        image = Image.fromarray(np.rint(image_HWC * 255).astype(np.uint8))
        image_HWC = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    return image_HWC


def unit(image: Image.Image) -> np.ndarray:
    """`[H, W, 3]` in [0, 1]."""
    return np.asarray(image, np.float32) / 255


def _luma(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC @ np.array([0.299, 0.587, 0.114], np.float32)


def _layout(edges_HW: np.ndarray) -> str:
    """Where a photograph is plain: a part with about half the detail, or less, of what it is compared with."""
    height, width = edges_HW.shape
    top, bottom = edges_HW[: (height + 2) // 3].mean(), edges_HW[-((height + 2) // 3) :].mean()
    middle_HW = np.zeros_like(edges_HW, bool)
    middle_HW[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    if top < 0.45 * bottom:
        return _LAYOUT[0]
    if bottom < 0.45 * top:
        return _LAYOUT[1]
    return _LAYOUT[2] if edges_HW[~middle_HW].mean() < 0.55 * edges_HW[middle_HW].mean() else _LAYOUT[3]


def _color_names(image_HWC: np.ndarray, chroma_HW: np.ndarray) -> np.ndarray:
    """Index into `_NAMES` of each pixel's color, by hue, saturation and value."""
    red, green, blue = np.moveaxis(image_HWC, -1, 0)
    value_HW = image_HWC.max(-1)
    saturation_HW = chroma_HW / np.maximum(value_HW, 1e-6)
    hue_HW = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360
    warm_HW = (hue_HW >= 12) & (hue_HW < 45)
    light_HW = (saturation_HW < 0.45) & (value_HW > 0.6)
    hues = ((hue_HW < 12) | (hue_HW >= 340), warm_HW, hue_HW < 68, hue_HW < 160, hue_HW < 195, hue_HW < 255)
    plain_HW = (saturation_HW < 0.15) | (chroma_HW < 0.06)  # a tint that nobody sees in a dark gray
    names_HW = np.select([value_HW < 0.16, plain_HW & (value_HW > 0.8), plain_HW], (0, 2, 1), -1)
    colored_HW = np.select(hues, (3, 4, 7, 8, 9, 10), np.where(hue_HW < 300, 11, 12))
    colored_HW = np.where(warm_HW & (value_HW < 0.7), 5, colored_HW)
    olive_HW = (colored_HW == 7) & (value_HW < 0.6)
    colored_HW = np.where(olive_HW, np.where(hue_HW < 55, 5, 8), colored_HW)
    colored_HW = np.where((hue_HW >= 12) & (hue_HW < 68) & light_HW, 6, colored_HW)
    colored_HW = np.where((colored_HW == 3) & light_HW, 12, colored_HW)
    return np.where(names_HW >= 0, names_HW, colored_HW)


def _cover(image_HWC: np.ndarray) -> str:
    """The class that covers most of the picture, by color; `a coast` when water and land both cover a fifth."""
    red, green, blue = np.moveaxis(image_HWC, -1, 0)
    luma_HW, chroma_HW = _luma(image_HWC), image_HWC.max(-1) - image_HWC.min(-1)
    bluish_HW = ((blue > 1.15 * red) & (luma_HW < 0.5)) | ((blue >= red) & (luma_HW < 0.26))
    water_HW = (bluish_HW & (blue >= 0.98 * green)) | (luma_HW < 0.07)
    snow_HW = ~water_HW & (luma_HW > 0.62) & (chroma_HW < 0.13)
    green_HW = ~water_HW & ~snow_HW & (green > 1.03 * red) & (green > 1.05 * blue)
    desert_HW = ~water_HW & ~snow_HW & ~green_HW & (red > 1.12 * blue) & (luma_HW > 0.45)
    if 0.2 < water_HW.mean() < 0.8:
        return "a coast"
    share = {"open water": water_HW, "snow and ice": snow_HW, "green land": green_HW, "desert": desert_HW}
    share = {name: mask_HW.mean() for name, mask_HW in share.items()}
    share["bare land"] = 1 - sum(share.values())
    return max(share, key=share.get)
