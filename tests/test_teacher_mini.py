"""The embedded default: a real LLaVA checkpoint whose captions fit the image, and the program that trains it."""

import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.captioning.config import PERSPECTIVES
from pipeline.sample_sources import crops
from teacher.identity import MINI
from teacher.llava.captioner import Captioner
from teacher.mini_training.answers import (
    DEFAULT_PROMPTS,
    KINDS,
    QUESTIONS,
    SEEN,
    answers,
    as_seen,
    contradictions,
    kind_named,
    sentences,
)  # fmt: skip
from teacher.mini_training.images import draw_crop, load_folders, load_split
from teacher.train_mini import Batches, Eyes, main


def inside(package: str, path: str) -> Path:
    return Path(importlib.util.find_spec(package).submodule_search_locations[0]) / path


def gray(pixels_HW: np.ndarray, low: float, high: float) -> Image.Image:
    """`low` black, `high` white."""
    pixels_HW = np.clip((pixels_HW.astype(np.float32) - low) / (high - low), 0, 1)
    return Image.fromarray(np.rint(pixels_HW * 255).astype(np.uint8)).convert("RGB")


def brain() -> Image.Image:
    """An axial slice of the MNI152 T1 volume that nilearn ships."""
    import nibabel

    path = inside("nilearn", "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    slice_HW = np.asarray(nibabel.load(path).dataobj[:, :, 90], np.float32).T[::-1]
    return gray(slice_HW, 0, slice_HW.max())


def head() -> Image.Image:
    """A sagittal MRI that matplotlib ships, of a person and a scanner unlike those of the training images."""
    data = gzip.decompress(inside("matplotlib", "mpl-data/sample_data/s1045.ima.gz").read_bytes())
    slice_HW = np.frombuffer(data, np.uint16).reshape(256, 256)
    return gray(slice_HW, 0, np.percentile(slice_HW, 99.5))


def spine() -> list[Image.Image]:
    """The CT slice that pydicom ships, in the windows for soft tissue and for bone."""
    import pydicom

    hounsfield_HW = pydicom.dcmread(inside("pydicom", "data/test_files/CT_small.dcm")).pixel_array - 1024.0
    return [gray(hounsfield_HW, -160, 240), gray(hounsfield_HW, -500, 1300)]


def photograph(path: str) -> Image.Image:
    with Image.open(inside("skimage", f"data/{path}")) as image:
        return image.convert("RGB")


def val_crops(domain: str) -> list[Image.Image]:
    return [Image.fromarray(crop.pixels).convert("RGB") for crop in crops(domain, "val", np.random.default_rng(0))[:8]]


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Image.Image, str]]:
    """Real images of all kinds out of ordinary packages; none of the photographs and maps was trained on."""
    found = [(image, "photograph") for image in (photograph("coffee.png"), *val_crops("natural"))]
    found += [(image, "satellite") for image in val_crops("remote_sensing")]
    found += [(image, "mri") for image in (brain(), head(), *val_crops("medical"))]
    return found + [(image, "ct") for image in spine()]


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner("mini", perspectives=DEFAULT_PROMPTS, quantization="nf4", device="cpu")


def say(captioner: Captioner, images: list[Image.Image]) -> list[dict[str, str]]:
    return [{name: answer.text for name, answer in result.items()} for result in captioner.caption(images)]


def test_the_questions_taught_are_the_ones_the_pipeline_asks():
    assert dict(PERSPECTIVES) == DEFAULT_PROMPTS


def test_real_images_are_named_right_in_nf4_and_hardly_ever_contradicted(captioner, pictures):
    said = say(captioner, [image for image, _ in pictures])
    assert sum(bool(contradictions(texts)) for texts in said) <= 1  # measured: 1.6 % of the card's pictures
    right = [kind_named(texts["content"]) == kind for texts, (_, kind) in zip(said, pictures, strict=True)]
    assert np.mean(right) >= 0.93
    assert len({tuple(texts.values()) for texts in said}) >= 0.7 * len(said)  # they tell images apart, not only kinds
    plain = Captioner("mini", perspectives={"content": DEFAULT_PROMPTS["content"]}, quantization="none", device="cpu")
    unquantised = say(plain, [image for image, _ in pictures])
    assert [kind_named(texts["content"]) for texts in unquantised] == [kind_named(texts["content"]) for texts in said]


def test_what_augmentation_makes_of_a_picture_is_still_of_its_kind(captioner, pictures):
    rng = np.random.default_rng(0)
    varied = [(draw_crop(image, kind, rng, augment=True), kind) for image, kind in pictures for _ in range(3)]
    scans = [np.asarray(image) for image, kind in varied if kind in ("mri", "ct")]
    assert all((scan == scan[..., :1]).all() for scan in scans) and all(max(image.size) == SEEN for image, _ in varied)
    said = say(captioner, [image for image, _ in varied])
    assert (
        np.mean([kind_named(texts["content"]) == kind for texts, (_, kind) in zip(said, varied, strict=True)]) >= 0.75
    )


def test_a_gray_photograph_has_no_colors_and_is_mostly_known_as_a_photograph(captioner):
    names = ("coffee.png", "astronaut.png", "chelsea.png", "camera.png", "rocket.jpg", "motorcycle_left.png")
    said = say(captioner, [photograph(name).convert("L").convert("RGB") for name in names])
    assert all("black and white" in texts["color"] for texts in said)
    assert sum("black and white photograph" in texts["content"] for texts in said) >= 4


def test_brightness_is_read_off_the_pixels(captioner):
    shades = [photograph("chelsea.png").point(lambda value, gain=gain: min(255, value * gain)) for gain in (0.2, 1.0)]
    dark, ordinary = (said["brightness"] for said in say(captioner, shades))
    assert "dark" in dark and "dark" not in ordinary


def test_plain_transformers_loads_it_and_its_weights_have_the_hubs_names():
    from safetensors import safe_open
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    with safe_open(MINI / "model.safetensors", "pt") as file:
        rooms = {name.split(".")[0]: name.split(".")[1] for name in file.keys()}  # noqa: SIM118
    assert rooms["vision_tower"] == "vision_model" and rooms["language_model"] in ("model", "lm_head")
    assert set(rooms) == {"vision_tower", "language_model", "multi_modal_projector"}
    processor = AutoProcessor.from_pretrained(MINI)
    model, report = LlavaForConditionalGeneration.from_pretrained(MINI, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    content = [{"type": "image"}, {"type": "text", "text": DEFAULT_PROMPTS["viewpoint"]}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=brain(), text=text, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert "cross-sectional" in processor.decode(output, skip_special_tokens=True)


def test_the_checkpoint_is_small_and_complete_and_its_card_states_what_was_measured():
    names = {path.name for path in MINI.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert {"tokenizer_config.json", "processor_config.json", "chat_template.jinja"} <= names
    assert sum(path.stat().st_size for path in MINI.iterdir()) <= 6e6
    card = (MINI / "README.md").read_text()
    for kind, wanted in (("photograph", 0.95), ("satellite", 0.97), ("all", 0.9)):
        right, total = map(int, re.search(rf"\| {kind}, whole \| (\d+) of (\d+)", card).groups())
        assert total >= 30 and right / total >= wanted
    wrong, pictures = map(int, re.search(r"contradict each other, NF4: (\d+) of (\d+)", card).groups())
    assert wrong <= 0.02 * pictures


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
    extra = f"ct={samples / 'medical_sr_x4' / 'train'}"  # any folder of images can be named for a kind
    steps = ["--eye-steps", "1", "--steps", "2", "--batch-size", "2", "--held-out", extra]
    main(["--samples", str(samples), "--extra", extra, "--out", str(tmp_path / "out"), *steps])
    assert "exact on held-out sources in NF4: content 0.0%" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2 steps of the rest of 2 images" in card and "2 ct" in card and "| ct, whole | 0 of 2" in card
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_branch_of_a_training_row_sees_what_a_separate_call_sees(samples):
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model, processor = LlavaForConditionalGeneration.from_pretrained(MINI).eval(), AutoProcessor.from_pretrained(MINI)
    batches = Batches(processor, [load_split(samples, "train")], seed=0)
    batch = batches.draw(*batches.pictures(1))
    labels = batch.pop("labels")[0]
    with torch.inference_mode():
        together = model(**batch).logits[0]
        starts = [i for i in range(1, len(labels)) if batch["position_ids"][0, i] == batches.n_prefix]
        for start, end in zip(starts, [*starts[1:], len(labels)], strict=True):
            alone = torch.cat([batch["input_ids"][0, : batches.n_prefix], batch["input_ids"][0, start:end]])
            logits = model(input_ids=alone[None], pixel_values=batch["pixel_values"]).logits[0, batches.n_prefix :]
            assert torch.allclose(together[start:end], logits, atol=1e-3)


def test_whatever_eyes_see_is_said_without_contradiction(samples):
    """Untrained ones see any mixture of properties; speech is trained on what they see."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    eyes = Eyes(LlavaForConditionalGeneration.from_pretrained(MINI))
    batches = Batches(AutoProcessor.from_pretrained(MINI, backend="pil"), [load_split(samples, "train")], seed=0)
    said = [sentences(values) for values in eyes.read(batches.pictures(16)[0])]
    assert all(set(texts) == set(QUESTIONS) and contradictions(texts) == [] for texts in said)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_the_pixels_as_seen(kind):
    black, white = (answers(np.full((8, 8, 3), value, np.float32), kind) for value in (0.0, 1.0))
    assert set(black) == set(QUESTIONS)
    assert "very dark" in black["brightness"] and "very bright" in white["brightness"]
    assert black["color"] == "The colors are missing, it is black and white, mostly black."
    red = answers(np.full((8, 8, 3), (0.9, 0.2, 0.1), np.float32), kind)
    assert red["color"] == "The colors are rich and vivid, mostly red."
    noise = np.random.default_rng(0).random((100, 150, 3), dtype=np.float32)
    assert answers(noise, kind) == answers(as_seen(noise), kind)


def test_what_is_taught_never_contradicts_itself_and_mixed_answers_do():
    rng = np.random.default_rng(0)
    shades = [np.full((8, 8, 3), rng.random(), np.float32), rng.random((8, 8, 3), dtype=np.float32)]
    said = {kind: [answers(image, kind) for image in shades] for kind in KINDS}
    assert all(contradictions(texts) == [] for both in said.values() for texts in both)
    photograph, satellite = said["photograph"][1], said["satellite"][1]
    assert contradictions({**photograph, "object": satellite["object"]})
    assert contradictions({**photograph, "color": said["photograph"][0]["color"]})


@pytest.mark.parametrize(
    ("pair", "color"),
    [((0.1, 0.3, 0.9), "blue"), ((0.4, 0.25, 0.1), "brown"), ((0.85, 0.75, 0.6), "beige"), ((0.2, 0.5, 0.15), "green"),
     ((0.95, 0.85, 0.1), "yellow"), ((0.95, 0.5, 0.1), "orange"), ((0.5, 0.5, 0.5), "gray"), ((1.0, 0.6, 0.7), "pink")],
)  # fmt: skip
def test_colors_have_the_names_people_give_them(pair, color):
    image = np.tile(np.array(pair, np.float32), (8, 8, 1))
    assert f"mostly {color}." in answers(image, "photograph")["color"]


def test_wrong_folders_say_what_is_wanted(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m pipeline.samples"):
        load_split(tmp_path, "train")
    with pytest.raises(ValueError, match="'cats=.*photograph, satellite, mri"):
        load_folders([f"cats={tmp_path}"])
    with pytest.raises(FileNotFoundError, match="no images"):
        load_folders([f"mri={tmp_path}"])
