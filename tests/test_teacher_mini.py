"""The embedded default: a real LLaVA checkpoint whose captions fit the image, and the program that trains it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.captioning.config import PERSPECTIVES
from pipeline.sample_sources import crops
from teacher.identity import MINI
from teacher.llava.captioner import Captioner
from teacher.mini_training.answers import KINDS, QUESTIONS, answers
from teacher.train_mini import DEFAULT_PROMPTS, Batches, load_split, main


def brain() -> Image.Image:
    """An axial slice of the MNI152 T1 volume that nilearn ships."""
    import nibabel
    import nilearn

    path = Path(nilearn.__file__).parent / "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    slice_HW = np.asarray(nibabel.load(path).dataobj[:, :, 90], np.float32).T[::-1]
    return Image.fromarray((np.clip(slice_HW / slice_HW.max(), 0, 1) * 255).astype(np.uint8)).convert("RGB")


def cat() -> Image.Image:
    """A photograph."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data/chelsea.png") as image:
        return image.convert("RGB")


def test_the_questions_taught_are_the_ones_the_pipeline_asks():
    assert dict(PERSPECTIVES) == DEFAULT_PROMPTS


def test_captions_fit_held_out_images_in_nf4():
    captioner = Captioner("mini", perspectives=DEFAULT_PROMPTS, quantization="nf4", device="cpu")
    seen = set()
    words = {"natural": "photograph of", "medical": "scan of a human brain", "remote_sensing": "satellite image"}
    for domain, word in words.items():
        images = [Image.fromarray(crop.pixels) for crop in crops(domain, "val", np.random.default_rng(0))[:8]]
        results = captioner.caption([image.convert("RGB") for image in images])
        assert sum(word in result["content"].text for result in results) >= 7, domain
        if domain == "medical":
            assert not any("photograph" in caption.text for result in results for caption in result.values())
        seen |= {tuple(caption.text for caption in result.values()) for result in results}
    assert len(seen) >= 8  # captions tell images apart, not only domains


def test_brightness_is_read_off_the_pixels():
    captioner = Captioner("mini", perspectives={"b": DEFAULT_PROMPTS["brightness"]}, quantization="nf4", device="cpu")
    shades = [cat().point(lambda value, gain=gain: min(255, value * gain)) for gain in (0.2, 1.0)]
    dark, ordinary = (result["b"].text for result in captioner.caption(shades))
    assert dark == "The image is dark." and ordinary != dark


def test_plain_transformers_loads_it_without_a_special_case():
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(MINI)
    model = LlavaForConditionalGeneration.from_pretrained(MINI)
    content = [{"type": "image"}, {"type": "text", "text": DEFAULT_PROMPTS["viewpoint"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=brain(), text=text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "cross-sectional" in processor.decode(output, skip_special_tokens=True)


def test_the_checkpoint_is_small_complete_and_its_card_states_the_goals_met():
    names = {path.name for path in MINI.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert {"tokenizer_config.json", "processor_config.json", "chat_template.jinja"} <= names
    assert sum(path.stat().st_size for path in MINI.iterdir()) <= 8e6
    rows = [line.split("|")[1:3] for line in (MINI / "README.md").read_text().splitlines() if "%" in line]
    exact = {name.strip(): float(share.strip().rstrip("%")) for name, share in rows if name.strip() in QUESTIONS}
    assert min(exact["viewpoint"], exact["object"]) >= 90 and min(exact["brightness"], exact["color"]) >= 85


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A toy tree in the layout of `pipeline.samples`: two images a domain and split."""
    root, rng, sources = tmp_path_factory.mktemp("samples"), np.random.default_rng(0), {}
    for task, kind in (
        ("natural_sr_x4", "photograph"),
        ("medical_sr_x4", "mri"),
        ("remote_sensing_sr_x4", "satellite"),
    ):
        for split in ("train", "val"):
            folder = root / task / split / "gt"
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).resize((64, 48)).save(folder / f"{number}.png")
                sources[f"{task}/{split}/gt/{number}.png"] = {"kind": kind}
    (root / "sources.json").write_text(json.dumps(sources))
    return root


def test_training_writes_a_checkpoint_that_the_captioner_loads(samples, tmp_path, capsys):
    main(["--samples", str(samples), "--out", str(tmp_path / "out"), "--steps", "2", "--batch-size", "2"])
    assert "exact on held-out sources in NF4: content 0.0%" in capsys.readouterr().out
    assert "2 steps of 2 images" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_branch_of_a_training_row_sees_what_a_separate_call_sees(samples):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, processor = LlavaForConditionalGeneration.from_pretrained(MINI).eval(), AutoProcessor.from_pretrained(MINI)
    batches = Batches(processor, load_split(samples, "train"), seed=0)
    batch = batches.draw(1)
    labels = batch.pop("labels")[0]
    with torch.inference_mode():
        together = model(**batch).logits[0]
        starts = [i for i in range(1, len(labels)) if batch["position_ids"][0, i] == batches.n_prefix]
        for start, end in zip(starts, [*starts[1:], len(labels)], strict=True):
            alone = torch.cat([batch["input_ids"][0, : batches.n_prefix], batch["input_ids"][0, start:end]])
            logits = model(input_ids=alone[None], pixel_values=batch["pixel_values"]).logits[0, batches.n_prefix :]
            assert torch.allclose(together[start:end], logits, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_the_pixels(kind):
    black, white = (answers(np.full((8, 8, 3), value, np.float32), kind) for value in (0.0, 1.0))
    assert set(black) == set(QUESTIONS)
    assert black["brightness"] == "The image is dark." and white["brightness"] == "The image is bright."
    assert black["color"] == "The colors are missing, it is black and white."
    red = answers(np.full((8, 8, 3), (0.9, 0.2, 0.1), np.float32), kind)
    assert red["color"] == "The colors are rich and vivid."


def test_missing_samples_say_which_command_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m pipeline.samples"):
        load_split(tmp_path, "train")
