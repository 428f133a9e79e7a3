"""Train the mini teacher: a LLaVA of about a million parameters that describes clean images of four kinds.

Every answer is derived by program (`mini_answers`), so the model learns to *read* brightness, color, texture, land
cover and kind of image off the pixels; it knows nothing else. First the vision tower learns to name these properties
by itself (`train_eyes`, whose classifiers are thrown away), which costs a third of a step of the whole model; then the
whole model learns to say them. Parts of the images are drawn afresh at every step.

    python -m teacher.train_mini                           # artifacts/samples -> teacher/mini
    python -m teacher.train_mini --extra photograph=DIR satellite=DIR mri=DIR mri_body=DIR ct=DIR ct_head=DIR
    python -m teacher.train_mini --held-out photograph=DIR satellite=DIR    # further images for the card, never trained
    python -m teacher.train_mini --size small --out DIR    # a second, larger teacher for ablations
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from teacher.captioner import Captioner
from teacher.mini_answers import QUESTIONS, VALUES, answers, attributes, contradictions, kind_named, sentences
from teacher.mini_card import write_card
from teacher.mini_checkpoint import Shape, build_model, build_processor, save
from teacher.mini_images import draw_crop, load_folders, load_split
from teacher.prefix import question_ids, shared_prefix

SIZES = {
    "mini": Shape(),
    "small": Shape(vision_width=192, vision_layers=5, vision_mlp=384, text_width=192, text_layers=3, text_mlp=384),
}
BRANCHES = 3  # questions per training image; fewer questions and more images generalise better in the same time
CROPS = 4  # of each held-out image, beside the image itself
# How often a kind is drawn: the more varied, the more often. A kind without images leaves its share to the others.
SHARES = {"photograph": 0.42, "satellite": 0.24, "mri": 0.13, "mri_body": 0.05, "ct": 0.09, "ct_head": 0.07}
DEFAULT_PROMPTS = {name: wordings[0] for name, wordings in QUESTIONS.items()}


class Batches:
    """Training batches: one image prefix, some questions as branches that see the prefix and themselves only."""

    def __init__(self, processor, images: list[tuple[Image.Image, str]], seed: int):
        self.processor, self.rng = processor, np.random.default_rng(seed)
        self.by_kind = {kind: [image for image, k in images if k == kind] for kind in SHARES}
        self.by_kind = {kind: found for kind, found in self.by_kind.items() if found}
        shares = np.array([SHARES[kind] for kind in self.by_kind])
        self.kind_shares = shares / shares.sum()
        self.ids = {name: list(question_ids(processor, dict(enumerate(q))).values()) for name, q in QUESTIONS.items()}
        self.n_prefix = shared_prefix([ids for wordings in self.ids.values() for ids in wordings])

    def pictures(self, size: int) -> tuple[Tensor, list[dict[str, str | None]]]:
        """Pixels `[B, 3, H, W]` as the vision tower wants them, and the attributes of each picture."""
        kinds = [str(kind) for kind in self.rng.choice(list(self.by_kind), size, p=self.kind_shares)]
        picks = [self.by_kind[kind][self.rng.integers(len(self.by_kind[kind]))] for kind in kinds]
        crops = [draw_crop(image, kind, self.rng, augment=True) for image, kind in zip(picks, kinds, strict=True)]
        found = [attributes(_unit(crop), kind) for crop, kind in zip(crops, kinds, strict=True)]
        return self.processor.image_processor(images=crops, return_tensors="pt")["pixel_values"], found

    def draw(self, size: int) -> dict[str, Tensor]:
        """`pixel_values`, `input_ids`, `position_ids`, `attention_mask` `[B, 1, L, L]` and `labels`."""
        pixels, found = self.pictures(size)
        rows = [self._row(sentences(values)) for values in found]
        length = max(len(row[0]) for row in rows)
        batch = {"pixel_values": pixels}
        for index, (key, fill) in enumerate((("input_ids", 0), ("position_ids", 0), ("labels", -100))):
            batch[key] = torch.tensor([row[index] + [fill] * (length - len(row[index])) for row in rows])
        branch_BL = torch.tensor([row[3] + [-1] * (length - len(row[3])) for row in rows])
        same_BLL = (branch_BL[:, :, None] == branch_BL[:, None, :]) | (branch_BL[:, None, :] == 0)
        batch["attention_mask"] = (same_BLL & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
        return batch

    def _row(self, texts: dict[str, str]) -> tuple[list[int], ...]:
        tokenizer = self.processor.tokenizer
        prefix = next(iter(self.ids.values()))[0][: self.n_prefix]
        ids, positions, labels = list(prefix), list(range(self.n_prefix)), [-100] * self.n_prefix
        branch = [0] * self.n_prefix
        for number, name in enumerate(self.rng.permutation(list(self.ids))[:BRANCHES], start=1):
            wordings = self.ids[name]
            question = wordings[self.rng.integers(len(wordings))][self.n_prefix :]
            answer = tokenizer.encode(" " + texts[name], add_special_tokens=False) + [tokenizer.eos_token_id]
            ids += [*question, *answer]
            labels += [*[-100] * len(question), *answer]
            branch += [number] * (len(question) + len(answer))
            positions += range(self.n_prefix, self.n_prefix + len(question) + len(answer))
        return ids, positions, labels, branch


def train_eyes(model, batches: Batches, steps: int, batch_size: int, lr: float = 1e-3) -> None:
    """Train the vision tower alone to classify `VALUES` from the mean of the patches that the language model gets."""
    tower, width = model.model.vision_tower, model.config.vision_config.hidden_size
    heads = torch.nn.ModuleList(torch.nn.Linear(width, len(values)) for values in VALUES.values())

    def loss() -> Tensor:
        pixels, found = batches.pictures(batch_size)
        mean_BD = tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:].mean(1)
        total = torch.zeros(())
        for head, (name, values) in zip(heads, VALUES.items(), strict=True):
            target_B = torch.tensor([-100 if row[name] is None else values.index(row[name]) for row in found])
            if (target_B >= 0).any():
                weight = 2.0 if name == "kind" else 0.5  # every sentence depends on the kind
                total = total + weight * torch.nn.functional.cross_entropy(head(mean_BD), target_B)
        return total

    _optimize(torch.nn.ModuleList([tower, heads]), loss, steps, lr, "vision tower")


def train(model, batches: Batches, steps: int, batch_size: int, lr: float = 1.5e-3) -> None:
    """Train the whole model on the answers' tokens."""

    def loss() -> Tensor:
        batch = batches.draw(batch_size)
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    _optimize(model, loss, steps, lr, "whole model")


def _optimize(module: torch.nn.Module, loss, steps: int, lr: float, name: str) -> None:
    """AdamW with warm-up and cosine decay; leaves `module` in evaluation mode."""
    from rich.progress import track

    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 30, 0.5 + 0.5 * np.cos(np.pi * step / steps) + 0.01)
    )
    module.train()
    for step in track(range(steps), description=name):
        value = loss()
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"{name}: step {step} loss {value.item():.4f}", flush=True)
    module.eval()


def _unit(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float32) / 255


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
    exact, kinds, parts = Counter(), {}, [0, 0]
    for texts, (image, kind, whole) in zip(said, drawn, strict=True):
        exact.update(name for name, text in answers(_unit(image), kind).items() if texts[name] == text)
        counts = kinds.setdefault(kind, [0, 0]) if whole else parts
        named = {kind_named(texts[name]) for name in ("content", "object", "viewpoint")}
        counts[0] += all(name is not None and name[:2] == kind[:2] for name in named)  # mri_body is an MRI, too
        counts[1] += 1
    return {
        "exact": {name: exact[name] / len(drawn) for name in QUESTIONS},
        "kinds": kinds,
        "parts": parts,
        "contradictions": sum(bool(contradictions(texts)) for texts in said),
        "distinct": len({tuple(texts.values()) for texts in said}),
        "pictures": len(drawn),
    }


def main(arguments: list[str] | None = None) -> None:
    """Train, save, reload in NF4, measure on held-out sources, and write the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=Path("artifacts/samples"), help="tree made by pipeline.samples")
    parser.add_argument("--extra", nargs="+", default=[], metavar="KIND=DIR", help="further training images")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="KIND=DIR", help="further images to measure on")
    parser.add_argument("--out", type=Path, default=Path("teacher/mini"), help="directory of the checkpoint")
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--eye-steps", type=int, default=1200, help="steps of the vision tower alone")
    parser.add_argument("--steps", type=int, default=400, help="steps of the whole model")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    started = perf_counter()
    images = load_split(options.samples, "train") + load_folders(options.extra)
    held_out = load_split(options.samples, "val") + load_folders(options.held_out)
    shape = SIZES[options.size]
    rng = np.random.default_rng(options.seed)
    spoken = []
    for image, kind in images * max(1, 600 // len(images)):
        said = answers(_unit(draw_crop(image, kind, rng, augment=True)), kind).values()
        spoken += [" " + text for text in said]  # as after "ASSISTANT:"
    asked = [wording for wordings in QUESTIONS.values() for wording in wordings] * 8
    processor = build_processor(shape, spoken + asked + ["USER: <image>\n ASSISTANT:"])
    model = build_model(shape, processor, options.seed)
    # CLIP normalises each patch right after adding its position: beside a tiny position the patch's own magnitude,
    # that is its brightness, would be divided away.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.5)
    batches = Batches(processor, images, options.seed)
    train_eyes(model, batches, options.eye_steps, 2 * options.batch_size)
    train(model, batches, options.steps, options.batch_size)

    seconds = perf_counter() - started
    save(model, processor, options.out)
    measured = {kind: measure(options.out, held_out, kind) for kind in ("nf4", "none")}
    write_card(
        options.out,
        measured,
        size=options.size,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        megabytes=(options.out / "model.safetensors").stat().st_size / 1e6,
        side=shape.image_size,
        n_train=len(images),
        train_kinds=", ".join(f"{count} {kind}" for kind, count in Counter(kind for _, kind in images).items()),
        n_held_out=len(held_out),
        crops=CROPS,
        seconds=seconds,
        threads=torch.get_num_threads(),
        eye_steps=options.eye_steps,
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        extra=bool(options.extra),
        flags="" if options.size == "mini" else f" --size {options.size} --out DIR",
    )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in measured["nf4"]["exact"].items())
    print(f"mini teacher: {options.out}, trained {seconds:.0f} s; exact on held-out sources in NF4: {shares}")
    print({name: value for name, value in measured["nf4"].items() if name != "exact"})


if __name__ == "__main__":
    main()
