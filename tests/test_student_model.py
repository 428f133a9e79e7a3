"""The whole student: sizes, configurations, gradients, precision, compilation, saving, prompts for tiles."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from student.model import Student
from student.model_config import ModelConfig

TINY = dict(
    width=16,
    encoder_blocks=(1,),
    latent_blocks=1,
    decoder_blocks=(1,),
    refinement_blocks=1,
    heads=(1, 2),
    prompt_dim=16,
    task_pool_size=4,
    domain_pool_size=4,
    task_top_k=2,
    domain_top_k=3,
    zero_init_output=False,
)
NAF = dict(backbone="nafnet", refinement_blocks=0)
VARIANTS = {
    "published": {},
    "nafnet": NAF,
    "modulation": dict(fusion="modulation"),
    "concat": dict(fusion="concat", pool_fusion="concat"),
    "tokens": dict(fusion="tokens"),
    "nafnet-tokens": dict(NAF, fusion="tokens"),
    "task": dict(domain_pool=False),
    "domain": dict(task_pool=False),
    "domain-tokens": dict(task_pool=False, fusion="tokens"),
    "none": dict(task_pool=False, domain_pool=False),
    "nafnet-none": dict(NAF, task_pool=False, domain_pool=False),
    "zero-init": dict(zero_init_output=True),
    "no-refinement": dict(refinement_blocks=0),
}


def student(**options) -> Student:
    torch.manual_seed(0)
    return Student(ModelConfig(**{**TINY, **options}))


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


def alive(model: Student) -> Student:
    """NAFNet's blocks start as identities and an output may start at zero: move both away from it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".beta", ".gamma")) or name.startswith("backbone.output"):
                parameter.normal_(0, 0.3)
    return model


def test_no_parameter_is_dead(variant):
    """Each tensor moves in one of the first training steps, the first of which only frees those that start at zero."""
    model = student(**variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    moved = set()
    for _ in range(4):
        restored, prompts = model(torch.rand(4, 3, 16, 16), return_prompts=True)
        loss = restored.square().mean()
        for composed in filter(None, (prompts.task, prompts.domain)):
            loss = loss + composed.prompt_BD[:, 0].mean()  # stands for the losses on the representations
        optimizer.zero_grad()
        loss.backward()
        moved |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        optimizer.step()
    assert {n for n, _ in model.named_parameters()} == moved


@settings(max_examples=20, deadline=None)
@given(st.integers(8, 41), st.integers(8, 41), st.integers(1, 3), st.sampled_from([{}, NAF]), st.integers(1, 3))
def test_any_size_from_8_up(height, width, batch, backbone, levels):
    shape = dict(encoder_blocks=(1,) * levels, decoder_blocks=(1,) * levels, heads=(1,) * (levels + 1))
    model = student(**{**shape, **backbone, "width": 8}).eval()
    with torch.no_grad():
        restored = model(torch.rand(batch, 3, height, width))
    assert restored.shape == (batch, 3, height, width) and restored.isfinite().all()


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 7, 16), (1, 3, 16, 7)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ValueError, match="must be"):
        student()(torch.rand(shape))


def test_zero_init_returns_its_input():
    lq = torch.rand(2, 3, 11, 13)
    assert torch.equal(student(zero_init_output=True).eval()(lq), lq)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(variant):
    model, lq = alive(student(**variant)).eval(), torch.rand(3, 3, 16, 24)
    one_by_one = torch.cat([model(image[None]) for image in lq])
    torch.testing.assert_close(model(lq), one_by_one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_given_prompts_replace_the_inputs_own(variant):
    model, lq, other = alive(student(**variant)).eval(), torch.rand(1, 3, 16, 16), torch.rand(1, 3, 24, 24)
    restored, prompts = model(lq, return_prompts=True)
    assert torch.equal(model(lq, prompts=model.encode_prompts(lq)), restored)
    if prompts.fused is not None:
        assert not torch.equal(model(lq, prompts=model.encode_prompts(other)), restored)
    # one image's prompts serve a batch of its tiles
    tiles, prompts = torch.rand(3, 3, 16, 16), model.encode_prompts(other)
    one_by_one = torch.cat([model(tile[None], prompts=prompts) for tile in tiles])
    torch.testing.assert_close(model(tiles, prompts=prompts), one_by_one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_folding_changes_nothing_and_training_unfolds(variant):
    model, lq = alive(student(**variant)).eval(), torch.rand(2, 3, 16, 16)
    expected, names = model(lq), model.state_dict().keys()
    torch.testing.assert_close(model.fold()(lq), expected, atol=1e-6, rtol=1e-5)
    assert model.state_dict().keys() == names
    assert model.train().folded is None
    model.fold().load_state_dict(student(**variant).state_dict())
    assert model.folded is None


def gradients(model: Student, lq: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(1)
    model(lq).square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_nothing(variant):
    plain, lq = alive(student(**variant)), torch.rand(2, 3, 16, 16)
    saving = student(**variant, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    torch.testing.assert_close(gradients(saving, lq), gradients(plain, lq))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_fp32_and_chooses_the_same_prompts(variant, dtype):
    model, lq = alive(student(**variant)).eval(), torch.rand(2, 3, 32, 32)
    expected, prompts = model(lq, return_prompts=True)
    with torch.autocast("cpu", dtype=dtype):
        restored, again = model(lq, return_prompts=True)
    assert restored.dtype == torch.float32  # the residual connection to the input keeps it
    assert (restored - expected).abs().max() < 0.05 * (expected - lq).abs().max() + 0.02
    for before, after in zip(prompts[:2], again[:2], strict=True):
        assert before is None or after.similarity_BN.dtype == torch.float32
    restored.mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_half_precision_survives_sums_that_overflow_fp16():
    """Channel attention sums products over all pixels: 16,384 pixels of value 2 already exceed fp16's 65,504."""
    model = alive(student())
    for block in (*model.backbone.encoder[0], *model.backbone.refinement):
        block.attention.qkv_conv.weight.data.mul_(60)
    lq = torch.rand(1, 3, 128, 128)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert model.eval()(lq).isfinite().all()


def test_black_and_constant_images_train(variant):
    for value in (0.0, 1.0):
        grads = gradients(student(**variant), torch.full((2, 3, 16, 16), value))
        assert all(grad.isfinite().all() for grad in grads.values())


@pytest.mark.parametrize("options", [{}, dict(NAF, fusion="tokens")], ids=["restormer", "nafnet-tokens"])
def test_compiles_whole_with_dynamic_sizes(options):
    torch._dynamo.reset()
    model = alive(student(**options)).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for height, width in ((16, 24), (33, 17)):
            lq = torch.rand(2, 3, height, width)
            torch.testing.assert_close(compiled(lq), model(lq), atol=1e-5, rtol=1e-5)


def test_saving_and_loading_keeps_everything(variant, tmp_path):
    model, lq = alive(student(**variant)).eval(), torch.rand(1, 3, 16, 16)
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["width"] == 16
    loaded = Student.from_pretrained(str(tmp_path))
    assert loaded.config == model.config and not loaded.training
    assert torch.equal(loaded(lq), model(lq))
    torch.testing.assert_close(copy.deepcopy(loaded)(lq), model(lq))


def test_loading_is_strict_and_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Student.from_pretrained(str(tmp_path))
    student().save_pretrained(tmp_path)
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
    student().save_pretrained(tmp_path, model_card_kwargs={"metrics": metrics, "Steps": 10})
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and "library_name: teachonce" in card
    assert "| deraining | 30.12 | 25 | 0.9 | 0.8 | 7 |" in card and "| Steps | 10 |" in card


def test_domain_pool_starts_from_centroids():
    model = student()
    model.init_domain_pool(torch.eye(16)[:4])
    torch.testing.assert_close(model.pools()["domain"].keys_ND.detach(), torch.eye(16)[:4])
    with pytest.raises(ValueError, match="domain_pool is off"):
        student(domain_pool=False).init_domain_pool(torch.eye(16)[:4])


@pytest.mark.parametrize(
    "options, published",
    [
        ({}, 53.13),
        (dict(domain_pool=False), 42.56),
        (
            dict(
                **NAF,
                width=32,
                encoder_blocks=(2, 2, 4, 8),
                latent_blocks=12,
                decoder_blocks=(2, 2, 2, 2),
                prompt_len=5,
                task_pool_size=12,
                domain_pool_size=6,
            ),
            71.04,
        ),
    ],
    ids=["dual", "task", "nafnet"],
)
def test_published_sizes(options, published):
    from student.published import to_published

    config = ModelConfig(**options)
    with torch.device("meta"):
        weights = to_published(Student(config).state_dict(), config)
    assert round(sum(tensor.numel() for tensor in weights.values()) / 1e6, 2) == published


@pytest.mark.parametrize(
    "options, message",
    [
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
