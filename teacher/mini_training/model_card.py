"""The model card of a mini teacher: what it is, what it is not, and what was measured."""

from __future__ import annotations

import datetime
from pathlib import Path

_TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
tags: [llava, tiny, test-model]
---
# Mini teacher ({size})

A LLaVA of {parameters:.2f} million parameters ({megabytes:.1f} MB, {side}x{side} input) in the ordinary Hugging Face
layout: `AutoProcessor` and `LlavaForConditionalGeneration` load it without a special case, in NF4 on a CPU too. It
makes the whole pipeline run anywhere, offline and in minutes, through the very code that runs the real teacher.

**What it is.** A model that reads brightness, colour richness, terrain and the kind of image (photograph, brain MRI,
{ct}satellite) off the pixels, and says so in a fixed set of sentences, in answer to the five default questions and two
other wordings of each. Its answers depend on the image and on nothing else.

**What it is not.** A vision-language model that knows the world. It saw {n_train} images. It cannot name a cat, it
cannot answer any other question, and on an image unlike those it will say something fluent and wrong. For captions
to distil from, set `caption.model: llava-hf/llava-1.5-7b-hf`.

## Measured
Exact answers (the whole sentence, character by character) on {n_crops} pictures: the {n_held_out} clean val images and
{crops} random crops of each. Their sources or regions were never seen in training, but the augmentation was chosen
while looking at these numbers, so expect a little less on other images.

| perspective | NF4 (default) | not quantised |
|---|---|---|
{rows}

{date}, {seconds:.0f} s of training on {threads} CPU thread(s), {steps} steps of {batch_size} images, seed {seed}.
Made by `python -m teacher.train_mini{flags}`; the answers it was taught are in `teacher/mini_training/answers.py`.
Data: crops of the clean *train* images of `python -m pipeline.samples`; sources and licences are in `docs/data.md`.
"""


def write_card(directory: Path, accuracy: dict[str, dict[str, float]], **facts) -> None:
    """Write `directory/README.md`; `accuracy` maps quantization -> perspective -> share of exact answers."""
    rows = [f"| {name} | {accuracy['nf4'][name]:.1%} | {accuracy['none'][name]:.1%} |" for name in accuracy["nf4"]]
    text = _TEMPLATE.format(rows="\n".join(rows), date=datetime.date.today().isoformat(), **facts)
    (directory / "README.md").write_text(text)
