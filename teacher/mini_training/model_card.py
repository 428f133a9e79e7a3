"""The model card of a mini teacher: what it is, what it is not, and what was measured."""

from __future__ import annotations

import datetime
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from teacher.llava.captioner import Captioner
from teacher.mini_training.answers import DEFAULT_PROMPTS, QUESTIONS, answers, contradictions, kind_named, unit
from teacher.mini_training.images import draw_crop

CROPS = 4  # of each held-out image, beside the image itself

_TEMPLATE = """---
license: {license}
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava, tiny, test-model]
---
# Mini teacher ({size})

A LLaVA of {parameters:.2f} million parameters ({megabytes:.1f} MB, {side}x{side} input) in the ordinary Hugging Face
layout: `AutoProcessor` and `LlavaForConditionalGeneration` load it without a special case, in NF4 on a CPU too. It
makes the whole pipeline run anywhere, offline and in minutes, through the very code that runs the real teacher.

**What it is.** A model that reads the kind of image (photograph, satellite image, MRI or CT scan), brightness,
contrast, colors, texture, layout and land cover off the pixels, and says so in fixed sentences, in answer to the five
default questions and two other wordings of each. Its answers depend on the image and on nothing else.

**What it is not.** A vision-language model that knows the world. It saw {n_train} images. It cannot name a cat, it
cannot answer any other question, and on an image of no kind that it knows (a drawing, an X-ray, a micrograph) it will
say something fluent and wrong. For captions to distil from, set `caption.model: llava-hf/llava-1.5-7b-hf`.

## Measured
{pictures} pictures: {n_held_out} clean images whose sources or regions were never seen in training, and {crops} random
parts of each, of a third to all of their sides. "Exact" is the whole sentence, character by character; most of what is
missing there are properties near a threshold.

| exact answers | NF4 (default) | not quantised |
|---|---|---|
{exact}

| kind of image, NF4 | right in content, object and viewpoint |
|---|---|
{kinds}

Answers that contradict each other, NF4: {contradictions} of {pictures} pictures. Distinct descriptions (all five
sentences together): {distinct}.

## Made
{date}, {seconds:.0f} s of training on {threads} CPU thread(s): {eye_steps} steps of the vision tower of twice
{batch_size} images, {steps} steps of the rest of {batch_size} images, seed {seed}, by
`python -m teacher.train_mini{flags} --eye-steps {eye_steps} --steps {steps}`{folders}. The
answers it was taught are written by `teacher/mini_training/answers.py`.

Training images: {kinds_trained}. The clean *train* images of `python -m pipeline.samples` are among them (sources and
licences: `docs/data.md`).{sources}
"""


_EXTRA = """ Where the others come from, on what terms and how their folders were
made is in [SOURCES.md](SOURCES.md); some may be used for non-commercial research only, and so may weights that learned
from them."""


def measure(checkpoint: Path, images: list[tuple[Image.Image, str]], quantization: str) -> dict:
    """What the captioner says of `images`, whole and in `CROPS` parts each.

    `exact`: perspective -> share of exact sentences; `kinds`: kind -> (named right, of) for whole images, where the
    three sentences that name a kind must all be right; `parts`: the same over all kinds for the parts; `contradictions`
    and `distinct`: counts over all.
    """
    rng = np.random.default_rng(1)
    drawn = [(image, kind, True) for image, kind in images]
    drawn += [(draw_crop(image, kind, rng, augment=False), kind, False) for image, kind in images for _ in range(CROPS)]
    captioner = Captioner(
        checkpoint, perspectives=DEFAULT_PROMPTS, quantization=quantization, max_new_tokens=48, batch_size=16
    )
    captions = captioner.caption([image for image, _, _ in drawn])
    said = [{name: caption.text for name, caption in given.items()} for given in captions]
    exact: Counter[str] = Counter()
    kinds: dict = {}
    parts = [0, 0]
    for texts, (image, kind, whole) in zip(said, drawn, strict=True):
        exact.update(name for name, text in answers(unit(image), kind).items() if texts[name] == text)
        counts = kinds.setdefault(kind, [0, 0]) if whole else parts
        named = {kind_named(texts[name]) for name in ("content", "object", "viewpoint")}
        counts[0] += named == {kind}
        counts[1] += 1
    return {
        "exact": {name: exact[name] / len(drawn) for name in QUESTIONS},
        "kinds": kinds,
        "parts": parts,
        "contradictions": sum(bool(contradictions(texts)) for texts in said),
        "distinct": len({tuple(texts.values()) for texts in said}),
        "pictures": len(drawn),
    }


def write_card(directory: Path, measured: dict[str, dict], train_kinds: Counter, extra: bool, **facts) -> None:
    """Write `directory/README.md`; `measured` maps quantization -> what `train_mini.measure` returns.

    `extra`: images beside the samples were trained on, whose terms `SOURCES.md` in `directory` has to state.
    """
    nf4, plain = measured["nf4"], measured["none"]
    exact = [f"| {name} | {share:.1%} | {plain['exact'][name]:.1%} |" for name, share in nf4["exact"].items()]
    counts = {**{f"{kind}, whole": count for kind, count in nf4["kinds"].items()}, "parts of all kinds": nf4["parts"]}
    whole = [sum(column) for column in zip(*nf4["kinds"].values(), strict=True)]
    counts = {"all, whole": whole, **counts}
    kinds = [f"| {name} | {right} of {total} ({right / total:.1%}) |" for name, (right, total) in counts.items()]
    text = _TEMPLATE.format(
        exact="\n".join(exact),
        kinds="\n".join(kinds),
        n_train=train_kinds.total(),
        kinds_trained=", ".join(f"{count} {kind}" for kind, count in train_kinds.items()),
        crops=CROPS,
        license="other" if extra else "apache-2.0",
        folders=" with `--extra` and `--held-out` folders" if extra else "",
        sources=_EXTRA if extra else "",
        date=datetime.date.today().isoformat(),
        **{name: nf4[name] for name in ("pictures", "contradictions", "distinct")},
        **facts,
    )
    (directory / "README.md").write_text(text)
