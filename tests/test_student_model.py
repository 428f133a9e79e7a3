"""The whole student: sizes, configurations, saving, prompts for tiles. Its training steps: test_student_steps.py."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from toy_student import CONFIGURATIONS, NAF, TINY, alive, make_student

from student.model import Student
from student.network.blocks import ChannelAttention
from student.network.config import ModelConfig
from student.network.published_layout import to_published
from student.restoration.blocks import restoring, sums_of

VARIANTS = {
    "published": {},
    "nafnet": NAF,
    "modulation": {"fusion": "modulation"},
    "concat": {"fusion": "concat", "pool_fusion": "concat"},
    "nafnet-tokens": {**NAF, "fusion": "tokens"},
    "task": {"domain_pool": False},
    "domain-tokens": {"task_pool": False, "fusion": "tokens"},
    "none": {"task_pool": False, "domain_pool": False},
    "zero-init": {"zero_init_output": True},
    "no-refinement": {"refinement_blocks": 0},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request):
    return request.param


SIDE, FEW = st.integers(8, 41), st.integers(1, 3)


@settings(max_examples=20)
@given(SIDE, SIDE, FEW, st.sampled_from(sorted(CONFIGURATIONS)), FEW)
def test_any_size_from_8_up_in_every_configuration(height, width, batch, name, levels):
    shape = dict(encoder_blocks=(1,) * levels, decoder_blocks=(1,) * levels, heads=(1,) * (levels + 1))
    model = make_student(**{**shape, **CONFIGURATIONS[name], "width": 8}).eval()
    with torch.no_grad():
        restored = model(torch.rand(batch, 3, height, width))
    assert restored.shape == (batch, 3, height, width) and restored.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 7, 16), (1, 3, 16, 7)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match="must be"):
        make_student()(torch.rand(shape))


def test_zero_init_returns_its_input():
    lq = torch.rand(2, 3, 11, 13)
    assert torch.equal(make_student(zero_init_output=True).eval()(lq), lq)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(variant):
    model, lq = alive(make_student(**variant)).eval(), torch.rand(3, 3, 16, 24)
    one_by_one = torch.cat([model(image[None]) for image in lq])
    torch.testing.assert_close(model(lq), one_by_one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_given_prompts_replace_the_inputs_own(variant):
    model, lq, other = alive(make_student(**variant)).eval(), torch.rand(1, 3, 16, 16), torch.rand(1, 3, 24, 24)
    restored, prompts = model(lq), model.encode_prompts(other)
    assert torch.equal(model(lq, prompts=model.encode_prompts(lq)), restored)
    assert torch.equal(model(lq, prompts=prompts), restored) is not model.config.has_prompts
    # one image's prompts serve a batch of its tiles
    tiles = torch.rand(3, 3, 16, 16)
    one_by_one = torch.cat([model(tile[None], prompts=prompts) for tile in tiles])
    torch.testing.assert_close(model(tiles, prompts=prompts), one_by_one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in strips, and whole
def test_sums_over_an_images_parts_are_the_images_statistics(variant, dtype):
    (model, statistics), lq = restoring(alive(make_student(**variant)).eval()), torch.rand(1, 3, 24, 32)
    prompts = model.encode_prompts(lq)
    statistics.start()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        model(lq, prompts=prompts)
        before = {block: tensor.clone() for block, tensor in statistics.known.items()}
        # What is known is used, and each block's input is the same: the sums over all parts give it again.
        for rows, columns in [(slice(0, 8), slice(0, 32)), (slice(8, 24), slice(0, 16)), (slice(8, 24), slice(16, 32))]:
            statistics.window = 24, rows, columns
            model(lq, prompts=prompts)
        assert statistics.known.keys() == before.keys()
        statistics.settle()
        settled, statistics.known = statistics.known, before
        statistics.window = 24, slice(0, 8), slice(0, 32)
        model(lq, prompts=prompts)
        statistics.settle()
    near = {"atol": 1e-5, "rtol": 1e-4} if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
    for block, expected in before.items():
        torch.testing.assert_close(settled[block].float(), expected.float(), **near)
    if dtype == torch.float32:
        part = statistics.known
        assert any(not torch.allclose(part[block], whole, **near) for block, whole in before.items())


def test_sums_over_pixels_stay_in_fp32_under_autocast():
    attention, pixels = ChannelAttention(4, 2), torch.full((1, 4096, 4), 10.0)
    with torch.autocast("cpu", torch.float16):
        sums = sums_of(attention, pixels, pixels)
    for found in sums:  # more than fp16 holds
        assert torch.equal(found, torch.full_like(found, 409_600.0)) and found.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # in strips, and whole
def test_given_statistics_replace_the_inputs_own(variant, dtype):
    student, lq, other = alive(make_student(**variant)).eval(), torch.rand(1, 3, 16, 24), torch.rand(1, 3, 24, 24) ** 3
    model, statistics = restoring(student)
    prompts, tiles = model.encode_prompts(lq), torch.rand(3, 3, 16, 16)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        whole = model(lq, prompts=prompts)
        statistics.start()
        model(other, prompts=prompts)
        assert not torch.allclose(model(lq, prompts=prompts), whole, atol=1e-4)
        statistics.start()
        assert torch.equal(model(lq, prompts=prompts), whole)
        torch.testing.assert_close(model(lq, prompts=prompts), whole, atol=1e-5, rtol=1e-5)
        # One image's statistics serve a batch of its tiles, and stay what they are.
        before = {block: tensor.clone() for block, tensor in statistics.known.items()}
        one_by_one = torch.cat([model(tile[None], prompts=prompts) for tile in tiles])
        torch.testing.assert_close(model(tiles, prompts=prompts), one_by_one, atol=1e-5, rtol=1e-5)
        assert before and before.keys() == statistics.known.keys()
        assert all(torch.equal(statistics.known[block], tensor) for block, tensor in before.items())
        statistics.stop()
        assert torch.equal(model(lq, prompts=prompts), whole)


@torch.no_grad()
def test_a_restoring_student_is_the_same_student(variant):
    student, lq = alive(make_student(**variant)).eval(), torch.rand(2, 3, 16, 24)
    names = list(student.state_dict())
    model, _ = restoring(student)
    torch.testing.assert_close(model(lq), student(lq), atol=1e-5, rtol=1e-5)
    for parameter in student.parameters():
        parameter.mul_(0.9)
    torch.testing.assert_close(model(lq), student(lq), atol=1e-5, rtol=1e-5)
    assert list(student.state_dict()) == names and student.backbone is not model.backbone


def test_saving_and_loading_keeps_everything(variant, tmp_path):
    model, lq = alive(make_student(**variant)).eval(), torch.rand(1, 3, 16, 16)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["width"] == 16
    loaded = Student.from_pretrained(str(tmp_path))
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(copy.deepcopy(loaded)(lq), model(lq))


def test_loading_is_strict_and_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Student.from_pretrained(str(tmp_path))
    make_student().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "latent_blocks": 2}))
    with pytest.raises(RuntimeError, match=r"latent\.1"):
        Student.from_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="safetensors"):
        Student.from_pretrained(str(tmp_path))


def test_model_card_shows_the_metrics(tmp_path):
    values = {"psnr": 30.123, "ssim": 0.9, "psnr_input": 25.0, "ssim_input": 0.8, "psnr_gain": 5.123, "n": 7}
    metrics = {"variant": "basicsr", "tasks": {"deraining": values}, "overall": values}
    make_student().save_pretrained(tmp_path, model_card_kwargs={"metrics": metrics, "Steps": 10})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: teachonce" in card
    assert "| deraining | 30.12 | 25 | 0.9 | 0.8 | 7 |" in card and "| Steps | 10 |" in card


PUBLISHED_NAF = {
    **NAF, "width": 32, "encoder_blocks": (2, 2, 4, 8), "latent_blocks": 12, "decoder_blocks": (2, 2, 2, 2),
    "prompt_len": 5, "task_pool_size": 12, "domain_pool_size": 6,
}  # fmt: skip


@pytest.mark.parametrize("options, millions", [({}, 53.13), ({"domain_pool": False}, 42.56), (PUBLISHED_NAF, 71.04)])
def test_published_sizes(options, millions):
    config = ModelConfig(**options)
    with torch.device("meta"):
        weights = to_published(Student(config).state_dict(), config)
    assert round(sum(tensor.numel() for tensor in weights.values()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(latent_blocks=10_000_000), "less than or equal to 1000"),
        (dict(decoder_blocks=(1, 1)), "same length"),
        (dict(heads=(1,)), "2 entries"),
        (dict(heads=(3, 1)), "does not divide"),
        (dict(task_top_k=5), "task_top_k 5 exceeds"),
        (dict(backbone="nafnet"), "NAFNet has none"),
        (dict(fusion="tokens", pool_fusion="concat"), "pool_fusion: attention"),
        (dict(prompt_dim=12), "multiple of 8"),
        (dict(ffn_expansion=0.01), "no hidden channel"),
        (dict(widht=8), "widht"),
    ],
)
def test_impossible_configurations_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**{**TINY, **options})


def test_a_pointer_in_place_of_the_weights_is_told(tmp_path):
    make_student().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="model.safetensors: a Git LFS pointer, not the weights; run git lfs pull"):
        Student.from_pretrained(str(tmp_path))
