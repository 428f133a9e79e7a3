"""What the mini teacher is taught to say: answers that a program derives from the pixels and from the kind of image."""

from __future__ import annotations

import numpy as np

KINDS = ("photograph", "mri", "ct", "satellite")

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
_SUBJECT = {
    "photograph": "a photograph of an everyday scene",
    "mri": "a magnetic resonance scan of a human brain",
    "ct": "a computed tomography scan of a human body",
    "satellite": "a satellite image of the Earth",
}
_OBJECT = {
    "photograph": "an everyday scene or thing in a photograph",
    "mri": "a human brain in a medical scan",
    "ct": "a human body in a medical scan",
    "satellite": "the surface of the Earth",
}
_VIEWPOINT = {
    "photograph": "The photograph was taken at eye level with a hand-held camera.",
    "mri": "It is a cross-sectional view through the head.",
    "ct": "It is a cross-sectional view through the body.",
    "satellite": "It was taken from space, looking straight down.",
}


def answers(image_HWC: np.ndarray, kind: str) -> dict[str, str]:
    """Perspective -> sentence, for an RGB image in [0, 1] of one of `KINDS`."""
    terrain = _terrain(image_HWC) if kind == "satellite" else None
    subject = f"{_SUBJECT[kind]} that shows {terrain}" if terrain else _SUBJECT[kind]
    return {
        "content": f"The image is {subject}, with {_detail(image_HWC)}.",
        "color": _color(image_HWC),
        "object": f"The main object is {_OBJECT[kind]}.",
        "brightness": _brightness(image_HWC),
        "viewpoint": _VIEWPOINT[kind],
    }


def _luma(image_HWC: np.ndarray) -> np.ndarray:
    return image_HWC @ np.array([0.299, 0.587, 0.114], np.float32)


def _brightness(image_HWC: np.ndarray) -> str:
    level = np.searchsorted((0.2, 0.5), _luma(image_HWC).mean())
    return f"The image is {('dark', 'moderately bright', 'bright')[level]}."


def _color(image_HWC: np.ndarray) -> str:
    chroma = (image_HWC.max(-1) - image_HWC.min(-1)).mean()
    level = np.searchsorted((0.01, 0.16), chroma)
    words = ("missing, it is black and white", "muted", "rich and vivid")
    return f"The colors are {words[level]}."


def _detail(image_HWC: np.ndarray) -> str:
    luma = _luma(image_HWC)
    energy = np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()
    return ("smooth areas", "some detail", "much fine detail")[np.searchsorted((0.03, 0.09), energy)]


def _terrain(image_HWC: np.ndarray) -> str:
    """The class that covers most of the picture, by colour; `coast` when water and land both cover a quarter."""
    red, green, blue = np.moveaxis(image_HWC, -1, 0)
    luma = _luma(image_HWC)
    water = (blue > 1.15 * red) & (luma < 0.45)
    snow = ~water & (luma > 0.62) & (image_HWC.max(-1) - image_HWC.min(-1) < 0.15)
    desert = ~water & ~snow & (red > 1.25 * blue) & (luma > 0.42)
    share = {"open water": water.mean(), "snow and ice": snow.mean(), "desert": desert.mean()}
    share["green land"] = 1 - sum(share.values())
    if 0.2 < share["open water"] < 0.8:
        return "a coast"
    return max(share, key=share.get)
