"""Train the mini teacher: a LLaVA of about a million parameters that describes the sample images.

Every answer is derived by program (`mini_answers`), so the model learns to *read* brightness, colour, terrain and
kind of image off the pixels; it knows nothing else. Crops of the train images are drawn afresh at every step; the
model card states the exact-answer rate on crops of the val images, whose sources it never saw.

    python -m teacher.train_mini                           # artifacts/samples -> teacher/mini
    python -m teacher.train_mini --size small --out DIR    # a second, larger teacher for ablations
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from teacher.llava.captioner import Captioner
from teacher.llava.shared_prefix import question_ids, shared_prefix
from teacher.mini_training.answers import KINDS, QUESTIONS, answers
from teacher.mini_training.checkpoint import Shape, build_model, build_processor
from teacher.mini_training.model_card import write_card

SIZES = {
    "mini": Shape(),
    "small": Shape(vision_width=192, vision_layers=5, vision_mlp=384, text_width=192, text_layers=3, text_mlp=384),
}
BRANCHES = 3  # questions per training image; fewer questions and more images generalise better in the same time
CROPS = 8  # of each held-out image, beside the image itself
DEFAULT_PROMPTS = {name: wordings[0] for name, wordings in QUESTIONS.items()}


def load_split(samples: Path, split: str) -> list[tuple[Image.Image, str]]:
    """Distinct clean images of `split` with their kind, from the samples' tree and its `sources.json`."""
    if not (samples / "sources.json").is_file():
        raise FileNotFoundError(f"{samples}/sources.json is missing; run `python -m pipeline.samples` first")
    sources = json.loads((samples / "sources.json").read_text())
    images = {}
    for path in sorted(samples.glob(f"*/{split}/gt/*.png")):
        data = path.read_bytes()
        images.setdefault(
            data, (Image.open(io.BytesIO(data)).convert("RGB"), sources[path.relative_to(samples).as_posix()]["kind"])
        )
    if not images:
        raise FileNotFoundError(f"no images under {samples}/*/{split}/gt; run `python -m pipeline.samples` first")
    return list(images.values())


def draw_crop(image: Image.Image, kind: str, rng: np.random.Generator, augment: bool) -> tuple[Image.Image, dict]:
    """A random part of `image` (40 to 100 % of each side, not empty) and the answers for it."""
    for _ in range(10):
        width, height = (max(24, round(side * rng.uniform(0.4, 1.0))) for side in image.size)
        left, top = (
            int(rng.integers(0, full - part + 1)) for full, part in zip(image.size, (width, height), strict=True)
        )
        pixels_HWC = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
        if pixels_HWC.std() > 0.01 or kind == "satellite":
            break
    if augment:
        pixels_HWC = _augmented(pixels_HWC, kind, rng)
    crop = Image.fromarray(np.rint(pixels_HWC * 255).astype(np.uint8))
    return crop, answers(np.asarray(crop, np.float32) / 255, kind)


def _augmented(pixels_HWC: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Other light, and for photographs other colours and a plain background: a few photographs must stand for all.

    Satellite images nearly keep their palette, which tells a sea from a blue wall behind a person.
    """
    if rng.random() < 0.5:
        pixels_HWC = pixels_HWC[:, ::-1]
    if kind == "satellite" and rng.random() < 0.5:
        pixels_HWC = pixels_HWC[::-1].swapaxes(0, 1)
    if kind == "photograph":
        if rng.random() < 0.6:
            pixels_HWC = pixels_HWC[..., rng.permutation(3)]
        if rng.random() < 0.5:
            pixels_HWC = _on_background(pixels_HWC, rng)
        if rng.random() < 0.7:
            gray = pixels_HWC.mean(-1, keepdims=True)
            pixels_HWC = gray + (pixels_HWC - gray) * rng.uniform(0.0, 1.8)
            pixels_HWC = pixels_HWC * rng.uniform(0.8, 1.2, 3)  # white balance
    if kind == "satellite":
        pixels_HWC = pixels_HWC * np.exp(rng.uniform(-0.1, 0.1, 3))  # another season or soil
    strength = 0.4 if kind == "satellite" else 1.0
    if rng.random() < 0.7:
        pixels_HWC = np.clip(pixels_HWC, 0, 1) ** np.exp(strength * rng.uniform(-0.5, 0.5))
    if rng.random() < 0.7:
        pixels_HWC = pixels_HWC * np.exp(strength * rng.uniform(-0.7, 0.25))
    return np.clip(pixels_HWC, 0, 1).astype(np.float32)


def _on_background(pixels_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture pasted over a part of a smooth random gradient."""
    height, width, _ = pixels_HWC.shape
    corners = Image.fromarray((rng.random(3) * 255 + rng.normal(0, 25, (2, 2, 3))).clip(0, 255).astype(np.uint8))
    canvas_HWC = np.asarray(corners.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
    canvas_HWC = canvas_HWC + rng.normal(0, rng.uniform(0, 0.02), canvas_HWC.shape)
    left, top = rng.integers(0, width // 2 + 1), rng.integers(0, height // 2 + 1)
    if rng.random() < 0.5:
        canvas_HWC[top:, left:] = pixels_HWC[top:, left:]
    else:
        canvas_HWC[: height - top, left:] = pixels_HWC[: height - top, left:]
    return canvas_HWC


class Batches:
    """Training batches: one image prefix, some questions as branches that see the prefix and themselves only."""

    def __init__(self, processor, images: list[tuple[Image.Image, str]], seed: int):
        self.processor, self.rng = processor, np.random.default_rng(seed)
        self.by_kind = {kind: [image for image, k in images if k == kind] for kind in KINDS}
        self.by_kind = {kind: found for kind, found in self.by_kind.items() if found}
        # Rare kinds are drawn more often than they occur, and photographs, the most varied kind, more often still.
        weights = [np.sqrt(len(found)) * (1.3 if kind == "photograph" else 1) for kind, found in self.by_kind.items()]
        self.kind_shares = np.array(weights) / sum(weights)
        self.ids = {name: list(question_ids(processor, dict(enumerate(q))).values()) for name, q in QUESTIONS.items()}
        self.n_prefix = shared_prefix([ids for wordings in self.ids.values() for ids in wordings])

    def draw(self, size: int) -> dict[str, Tensor]:
        """`pixel_values`, `input_ids`, `position_ids`, `attention_mask` `[B, 1, L, L]` and `labels`."""
        kinds = self.rng.choice(list(self.by_kind), size, p=self.kind_shares)
        picks = [self.by_kind[kind][self.rng.integers(len(self.by_kind[kind]))] for kind in kinds]
        crops = [draw_crop(image, kind, self.rng, augment=True) for image, kind in zip(picks, kinds, strict=True)]
        rows = [self._row(texts) for _, texts in crops]
        length = max(len(row[0]) for row in rows)
        batch = {"pixel_values": self._pixels([crop for crop, _ in crops])}
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

    def _pixels(self, crops: list[Image.Image]) -> Tensor:
        return self.processor.image_processor(images=crops, return_tensors="pt")["pixel_values"]


def train(model, batches: Batches, steps: int, batch_size: int, lr: float = 1.5e-3):
    """AdamW with warm-up and cosine decay on the answers' tokens; returns the model."""
    from rich.progress import track

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 30, 0.5 + 0.5 * np.cos(np.pi * step / steps) + 0.01)
    )
    model.train()
    for step in track(range(steps), description="training"):
        batch = batches.draw(batch_size)
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return model.eval()


def held_out_accuracy(checkpoint: Path, images: list, quantization: str) -> dict[str, float]:
    """Share of exact answers per perspective on the images and `CROPS` crops of each, through the real captioner."""
    rng = np.random.default_rng(1)
    drawn = [draw_crop(image, kind, rng, augment=False) for image, kind in images for _ in range(CROPS)]
    drawn += [(image, answers(np.asarray(image, np.float32) / 255, kind)) for image, kind in images]
    captioner = Captioner(
        checkpoint, perspectives=DEFAULT_PROMPTS, quantization=quantization, max_new_tokens=48, batch_size=16
    )
    captions = captioner.caption([image for image, _ in drawn])
    return {
        name: float(
            np.mean([given[name].text == texts[name] for given, (_, texts) in zip(captions, drawn, strict=True)])
        )
        for name in QUESTIONS
    }


def main(arguments: list[str] | None = None) -> None:
    """Train, save, reload in NF4, measure on held-out sources, and write the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=Path, default=Path("artifacts/samples"), help="tree made by pipeline.samples")
    parser.add_argument("--out", type=Path, default=Path("teacher/mini"), help="directory of the checkpoint")
    parser.add_argument("--size", choices=SIZES, default="mini")
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    started = perf_counter()
    images, held_out = load_split(options.samples, "train"), load_split(options.samples, "val")
    shape = SIZES[options.size]
    rng = np.random.default_rng(options.seed)
    spoken = [text for image, kind in images * 4 for text in draw_crop(image, kind, rng, augment=True)[1].values()]
    asked = [wording for wordings in QUESTIONS.values() for wording in wordings] * 8
    processor = build_processor(shape, spoken + asked + ["USER: <image>\n ASSISTANT:"])
    model = build_model(shape, processor, options.seed)
    # CLIP normalises each patch right after adding its position: beside a tiny position the patch's own magnitude,
    # that is its brightness, would be divided away.
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.5)
    train(model, Batches(processor, images, options.seed), options.steps, options.batch_size)

    seconds = perf_counter() - started
    options.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.out)
    processor.save_pretrained(options.out)
    accuracy = {kind: held_out_accuracy(options.out, held_out, kind) for kind in ("nf4", "none")}
    write_card(
        options.out,
        accuracy,
        size=options.size,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        megabytes=(options.out / "model.safetensors").stat().st_size / 1e6,
        side=shape.image_size,
        ct="body CT, " if any(kind == "ct" for _, kind in images) else "",
        n_train=len(images),
        n_held_out=len(held_out),
        n_crops=len(held_out) * (CROPS + 1),
        crops=CROPS,
        seconds=seconds,
        threads=torch.get_num_threads(),
        steps=options.steps,
        batch_size=options.batch_size,
        seed=options.seed,
        flags="" if options.size == "mini" else f" --size {options.size} --out DIR",
    )
    shares = ", ".join(f"{name} {share:.1%}" for name, share in accuracy["nf4"].items())
    print(f"mini teacher: {options.out}, trained {seconds:.0f} s; exact on held-out sources in NF4: {shares}")


if __name__ == "__main__":
    main()
