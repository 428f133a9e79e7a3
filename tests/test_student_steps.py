"""Training steps of every configuration: no dead parameter, precision, compilation, activation checkpointing."""

import pytest
import torch
from toy_student import CONFIGURATIONS, NAF, alive, losses_of, make_student

from student.model import Student
from student.training.config import LossWeights

FEW = ["restormer-both-broadcast", "nafnet-both-tokens", "restormer-both-concat-concat", "nafnet-domain-modulation"]
"""Each backbone and each fusion once, for what depends on nothing else."""


@pytest.fixture(params=FEW)
def few(request):
    return CONFIGURATIONS[request.param]


def gradients(model: Student, lq: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of all losses that the model can have."""
    model.zero_grad()
    torch.manual_seed(1)
    weights = dict(LossWeights()) if model.config.has_prompts else {"pixel": 1.0, "fft": 0.1}
    losses_of(model, lq, weights | ({} if model.config.domain_pool else {"align": 0.0})).total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(4, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_parameter_gets_a_gradient_in_one_training_step(name):
    model = alive(make_student(**CONFIGURATIONS[name]))
    found = gradients(model, images())
    assert {n for n, _ in model.named_parameters()} == {n for n, grad in found.items() if grad.abs().max() > 0}


@pytest.mark.parametrize("backbone", [{}, NAF], ids=["restormer", "nafnet"])
def test_from_the_first_weights_every_parameter_moves_within_four_steps(backbone):
    """The default start is the identity: the first steps free the output, then the blocks, then what is in them."""
    model = make_student(**backbone, zero_init_output=True)
    optimizer, moved = torch.optim.SGD(model.parameters(), lr=0.01), set()
    for _ in range(4):
        moved |= {name for name, grad in gradients(model, images()).items() if grad.abs().max() > 0}
        optimizer.step()
    assert {name for name, _ in model.named_parameters()} == moved


def test_activation_checkpointing_changes_nothing(few):
    plain, saving = alive(make_student(**few)), make_student(**few, activation_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    torch.testing.assert_close(gradients(saving, images()), gradients(plain, images()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_black_and_constant_images_train(few, dtype):
    for value in (0.0, 1.0):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            grads = gradients(make_student(**few), torch.full((4, 3, 16, 16), value))
        assert all(grad.isfinite().all() for grad in grads.values())


GRAPHS = [
    *((CONFIGURATIONS[name], "eager", torch.float32) for name in CONFIGURATIONS if "-both-" in name or "none" in name),
    *((backbone, "aot_eager", torch.float32) for backbone in ({}, NAF)),  # its backward pass is traced too
    *((backbone, "eager", torch.bfloat16) for backbone in ({}, NAF)),
]


@pytest.mark.slow
@pytest.mark.parametrize("options, backend, dtype", GRAPHS, ids=range(len(GRAPHS)))
def test_a_training_step_of_every_backbone_and_fusion_is_one_graph(options, backend, dtype):
    """Without a graph break, which `fullgraph` makes an error, and without a new graph for a second size of image."""
    torch._dynamo.reset()
    options = {**options, "dropout": 0.0, "selection_noise": 0.0}
    model, eager = alive(make_student(**options)), make_student(**options)
    eager.load_state_dict(model.state_dict())
    model.compile(fullgraph=True, dynamic=True, backend=backend)
    for height, width in ((16, 24), (33, 17)):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            compiled, expected = (gradients(student, images(height, width)) for student in (model, eager))
        if dtype == torch.float32:
            torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-3)
        for name, gradient in expected.items():
            assert (compiled[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-4, name


@pytest.mark.parametrize("name", FEW[:2])
def test_restoring_compiles_whole_with_dynamic_sizes(name):
    torch._dynamo.reset()
    model = alive(make_student(**CONFIGURATIONS[name])).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        for height, width in ((16, 24), (33, 17)):
            lq = images(height, width)
            torch.testing.assert_close(compiled(lq), model(lq), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_fp32_and_chooses_the_same_prompts(few, dtype):
    model, lq = alive(make_student(**few)).eval(), images(32, 32)
    expected, prompts = model(lq, return_prompts=True)
    with torch.autocast("cpu", dtype=dtype):
        restored, again = model(lq, return_prompts=True)
    assert restored.dtype == torch.float32  # the residual connection to the input keeps it
    assert (restored - expected).abs().max() < 0.05 * (expected - lq).abs().max() + 0.02
    for before, after in zip(prompts[:2], again[:2], strict=True):
        assert before is None or after.similarity_BN.dtype == torch.float32
    with torch.autocast("cpu", dtype=dtype):
        assert all(grad.isfinite().all() for grad in gradients(model.train(), lq).values())


def test_half_precision_survives_sums_that_overflow_fp16():
    """Channel attention sums products over all pixels: 16,384 pixels of value 2 already exceed fp16's 65,504."""
    model = alive(make_student())
    for block in (*model.backbone.encoder[0], *model.backbone.refinement):
        block.attention.qkv_conv.weight.data.mul_(60)
    lq = torch.rand(1, 3, 128, 128)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        assert model.eval()(lq).isfinite().all()
