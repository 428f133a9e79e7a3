"""Train the mini teacher: a LLaVA of about a million parameters that describes clean images of four kinds.

Every answer is derived by program (`mini_training.answers`), so the model learns to *read* brightness, color, texture,
land cover and kind of image off the pixels; it knows nothing else. First the vision tower learns to name these
properties by itself (`train_eyes`; its classifiers are thrown away), which costs a third of a step of the whole model;
then the rest learns to say what the tower sees (`train_speech`). Parts of the images are drawn afresh at every step.

    python -m teacher.train_mini                           # artifacts/samples -> teacher/mini
    python -m teacher.train_mini --extra photograph=DIR satellite=DIR mri=DIR ct=DIR
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

from teacher.llava.shared_prefix import question_ids, shared_prefix
from teacher.mini_training.answers import QUESTIONS, VALUES, answers, attributes, sentences, unit
from teacher.mini_training.checkpoint import Shape, build_model, build_processor, save
from teacher.mini_training.images import draw_crop, load_folders, load_split
from teacher.mini_training.model_card import measure, write_card

SIZES = {
    "mini": Shape(),
    "small": Shape(vision_width=192, vision_layers=5, vision_mlp=384, text_width=192, text_layers=3, text_mlp=384),
}
BRANCHES = 3  # questions per training image; fewer questions and more images generalise better in the same time
# How often a kind is drawn: the more varied, the more often. A kind without images leaves its share to the others.
SHARES = {"photograph": 0.42, "satellite": 0.22, "mri": 0.2, "ct": 0.16}
SAMPLES = 0.25  # of a kind's pictures, where there are further ones: the default run's must be named right, too


class Batches:
    """Training batches: one image prefix, some questions as branches that see the prefix and themselves only."""

    def __init__(self, processor, folders: list[list[tuple[Image.Image, str]]], seed: int):
        """`folders`: the samples, then folders of one kind each; what is given twice is drawn twice as often."""
        self.processor, self.rng = processor, np.random.default_rng(seed)
        self.pools = {}
        for kind in SHARES:
            own, *others = [[image for image, k in folder if k == kind] for folder in folders]
            if own or any(others):
                self.pools[kind] = [own, *filter(None, others)]
        shares = np.array([SHARES[kind] for kind in self.pools])
        self.kind_shares = shares / shares.sum()
        self.ids = {name: list(question_ids(processor, dict(enumerate(q))).values()) for name, q in QUESTIONS.items()}
        self.n_prefix = shared_prefix([ids for wordings in self.ids.values() for ids in wordings])

    def pictures(self, size: int) -> tuple[Tensor, list[dict[str, str | None]]]:
        """Pixels `[B, 3, H, W]` as the vision tower wants them, and the attributes of each picture."""
        crops, found = [], []
        for kind in self.rng.choice(list(self.pools), size, p=self.kind_shares):
            samples, *others = self.pools[kind]
            own = samples and (not others or self.rng.random() < SAMPLES)
            pool = samples if own else others[self.rng.integers(len(others))]
            crops.append(draw_crop(pool[self.rng.integers(len(pool))], str(kind), self.rng, augment=True))
            found.append(attributes(unit(crops[-1]), str(kind)))
        return self.processor.image_processor(images=crops, return_tensors="pt")["pixel_values"], found

    def draw(self, pixels: Tensor, found: list[dict[str, str | None]]) -> dict[str, Tensor]:
        """`pixel_values`, `input_ids`, `position_ids`, `attention_mask` `[B, 1, L, L]` and `labels` of answers."""
        rows = [self._row(sentences(values)) for values in found]
        length = max(len(row[0]) for row in rows)
        batch: dict[str, Tensor] = {"pixel_values": pixels}
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


class Eyes(torch.nn.Module):
    """The vision tower, and classifiers of `VALUES` on the mean of the patches that the language model gets."""

    def __init__(self, model):
        super().__init__()
        self.tower, width = model.model.vision_tower, model.config.vision_config.hidden_size
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, len(values)) for values in VALUES.values())

    def forward(self, pixels_BCHW: Tensor) -> dict[str, Tensor]:
        """Attribute -> logits `[B, values]`."""
        mean_BD = self.tower(pixels_BCHW, output_hidden_states=True).hidden_states[-1][:, 1:].mean(1)
        return {name: head(mean_BD) for name, head in zip(VALUES, self.heads, strict=True)}

    def loss(self, pixels_BCHW: Tensor, found: list[dict[str, str | None]]) -> Tensor:
        total = torch.zeros(())
        for name, logits in self(pixels_BCHW).items():
            target_B = torch.tensor([-100 if row[name] is None else VALUES[name].index(row[name]) for row in found])
            if (target_B >= 0).any():
                weight = 2.0 if name == "kind" else 0.5  # every sentence depends on the kind
                total = total + weight * torch.nn.functional.cross_entropy(logits, target_B)
        return total

    @torch.no_grad()
    def read(self, pixels_BCHW: Tensor) -> list[dict[str, str]]:
        """What the eyes take each picture for: the most likely value of every attribute."""
        best = {name: logits.argmax(1).tolist() for name, logits in self(pixels_BCHW).items()}
        return [{name: VALUES[name][best[name][row]] for name in best} for row in range(len(pixels_BCHW))]


def train_eyes(model, batches: Batches, steps: int, batch_size: int, lr: float = 1e-3) -> Eyes:
    """Train the vision tower alone."""
    eyes = Eyes(model)
    _optimize(eyes, lambda: eyes.loss(*batches.pictures(batch_size)), steps, lr, "eyes")
    return eyes


def train_speech(model, eyes: Eyes, batches: Batches, steps: int, batch_size: int, lr: float = 1.5e-3) -> None:
    """Train the rest to say what the eyes see, right or wrong: so the answers about one image agree with each other.

    Taught the truth instead, each perspective drew its own border between the kinds, and 8 % of pictures got answers
    that contradicted each other.
    """
    eyes.requires_grad_(False)

    def loss() -> Tensor:
        pixels, _ = batches.pictures(batch_size)
        batch = batches.draw(pixels, eyes.read(pixels))
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    _optimize(model, loss, steps, lr, "speech")
    eyes.requires_grad_(True)


def _optimize(module: torch.nn.Module, loss, steps: int, lr: float, name: str) -> None:
    """AdamW with warm-up and cosine decay; leaves `module` in evaluation mode."""
    from rich.progress import track

    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.98), weight_decay=0.02
    )
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


def main(arguments: list[str] | None = None) -> None:
    """Train, save, reload in NF4, measure on held-out sources, and write the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=Path("artifacts/samples"), help="tree made by pipeline.samples")
    parser.add_argument("--extra", nargs="+", default=[], metavar="KIND=DIR", help="further training images")
    parser.add_argument("--held-out", nargs="+", default=[], metavar="KIND=DIR", help="further images to measure on")
    parser.add_argument("--out", type=Path, default=Path("teacher/mini"), help="directory of the checkpoint")
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--eye-steps", type=int, default=1500, help="steps of the vision tower")
    parser.add_argument("--steps", type=int, default=400, help="steps of the rest")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    started = perf_counter()
    names = list(dict.fromkeys(options.extra))
    extra = dict(zip(names, load_folders(names), strict=True))
    samples = load_split(options.samples, "train")
    folders = [samples, *(extra[name] for name in options.extra)]
    held_out = sum(load_folders(options.held_out), load_split(options.samples, "val"))
    shape = SIZES[options.size]
    rng = np.random.default_rng(options.seed)
    spoken = []
    for image, kind in sum(folders, []) * max(1, 600 // sum(map(len, folders))):
        said = answers(unit(draw_crop(image, kind, rng, augment=True)), kind).values()
        spoken += [" " + text for text in said]  # as after "ASSISTANT:"
    asked = [wording for wordings in QUESTIONS.values() for wording in wordings] * 8
    processor = build_processor(shape, spoken + asked + ["USER: <image>\n ASSISTANT:"])
    model = build_model(shape, processor, options.seed)
    # CLIP normalises each patch right after adding its position: beside a tiny position the patch's own magnitude,
    # that is its brightness, would be divided away.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.5)
    batches = Batches(processor, folders, options.seed)
    eyes = train_eyes(model, batches, options.eye_steps, 2 * options.batch_size)
    train_speech(model, eyes, batches, options.steps, options.batch_size)

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
        train_kinds=Counter(kind for _, kind in sum(extra.values(), samples)),
        n_held_out=len(held_out),
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
