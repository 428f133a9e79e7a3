"""The formulation for GPUs computes what the other one does; here on a CPU, and counted at the published size."""

import copy
from collections.abc import Iterable

import pytest
import torch
import toy_training as toy
from torch._dynamo.backends.registry import lookup_backend
from torch._subclasses.fake_tensor import FakeTensorMode
from toy_student import CONFIGURATIONS, alive, losses_of, make_student

from student.model import Student
from student.network import block_node, gpu_blocks
from student.network.blocks import RestormerBlock
from student.network.config import ModelConfig
from student.network.gpu_blocks import GpuRestormer, formulate
from student.training.config import LossWeights, TrainConfig
from student.training.step_cost import StepCost, rehearse

CPU = torch.device("cpu")
RESTORMERS = [name for name in CONFIGURATIONS if name.startswith("restormer")]
SHAPES = {"width": 24, "heads": (2, 3), "dropout": 0.0, "selection_noise": 0.0}  # 63 and 127 hidden channels
KERNELS, GIGABYTES = 3_200, 116
"""Budget of one bf16 step at the published size; lower them when it takes less."""


@pytest.fixture(autouse=True)
def cpu_as_a_gpu(monkeypatch):
    monkeypatch.setattr(gpu_blocks, "DEVICES", {"cpu"})


def pair(name: str, **options):
    """A student with nothing left at zero or one, plain, and the same for a GPU."""
    plain = alive(make_student(**CONFIGURATIONS[name], **SHAPES, **options))
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    ours = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    formulate(ours.backbone, CPU)
    assert type(ours.backbone) is GpuRestormer
    return plain, ours


def images(value: float | None = None) -> torch.Tensor:
    lq = torch.rand(4, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    return lq if value is None else torch.full_like(lq, value)


def gradients(student, lq: torch.Tensor, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    student.zero_grad()
    terms = dict(LossWeights()) if student.config.has_prompts else {"pixel": 1.0, "fft": 0.1}
    losses_of(student, lq, terms | ({} if student.config.domain_pool else {"align": 0.0}), dtype).total.backward()
    return {name: parameter.grad for name, parameter in student.named_parameters()}


def distance(one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> float:
    """The largest of any tensor's errors, relative to the tensor."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", RESTORMERS)
def test_outputs_and_gradients_are_the_plain_ones(name):
    plain, ours = pair(name)
    expected, found = gradients(plain, images()), gradients(ours, images())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert distance(found.values(), expected.values()) < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), plain(images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["restormer-both-broadcast", "restormer-both-tokens"])
def test_half_precision_is_as_near_to_float32_as_the_plain_one(name):
    plain, ours = pair(name)
    exact = gradients(plain, images()).values()
    errors = []
    for student in (plain, ours):
        near = copy.deepcopy(student)
        errors.append(distance(gradients(near, images(), torch.bfloat16).values(), exact))
    assert errors[1] < 1.25 * errors[0], errors


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_black_and_constant_images_train(value, dtype):
    ours = pair("restormer-both-broadcast")[1]
    assert all(gradient.isfinite().all() for gradient in gradients(ours, images(value), dtype).values())


def test_recomputed_blocks_have_the_same_gradients():
    plain, ours = pair("restormer-both-broadcast", activation_checkpointing=True)
    assert distance(gradients(ours, images()).values(), gradients(plain, images()).values()) < 1e-4


def test_fp16_and_features_that_kernels_cannot_index_are_left_to_the_plain_formulation(monkeypatch):
    plain, ours = pair("restormer-both-broadcast")
    half = [gradients(student, images(), torch.float16).values() for student in (plain, ours)]
    assert all(map(torch.equal, *half))
    monkeypatch.setattr(gpu_blocks, "pack", None)
    with pytest.raises(TypeError):
        ours(images())
    ours.backbone.config = ours.config.model_copy(update={"width": 2**20})
    assert torch.equal(ours(images()), plain(images()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["restormer-both-broadcast", "restormer-both-tokens"])
def test_a_compiled_step_is_one_graph_of_these_blocks(name):
    plain, ours = pair(name)
    expected, graphs = gradients(plain, images()), []

    def noted(module, inputs):
        graphs.append(sum("autograd_function_apply" in str(node.target) for node in module.graph.nodes))
        return lookup_backend("aot_eager")(module, inputs)

    ours.compile(fullgraph=True, backend=noted)
    assert distance(gradients(ours, images()).values(), expected.values()) < 1e-4
    narrow = images()[..., :16]
    assert distance(gradients(ours, narrow).values(), gradients(plain, narrow).values()) < 1e-4, "another size"
    assert set(graphs) == {sum(type(block) is RestormerBlock for block in ours.modules()) * 2}, "block and weights"


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`block_node.product` as a GPU has it; a CPU only knows its shapes."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.dtype == torch.bfloat16 else torch.bmm(a, b)


def test_a_step_of_the_published_size_stays_within_its_budget(monkeypatch):
    monkeypatch.setattr(block_node, "product", product)
    step = rehearse(TrainConfig(ema_decay=0.999), ModelConfig(), 1, CPU)
    assert KERNELS - 100 < step.cost.kernels <= KERNELS
    assert GIGABYTES - 3 < step.cost.bytes / 1e9 <= GIGABYTES


@pytest.mark.slow
def test_a_step_asks_for_a_third_of_what_the_authors_formulation_does(monkeypatch):
    """Both with the pixel loss and Adam alone, in bf16."""
    monkeypatch.setattr(block_node, "product", product)
    monkeypatch.syspath_prepend(str(toy.ROOT / "benchmarks"))
    from plain_student import PlainStudent

    costs = []
    for kind in (PlainStudent, Student):
        with FakeTensorMode():
            student = kind(ModelConfig()).train()
            if kind is Student:
                student.backbone.__class__ = GpuRestormer
            optimizer = torch.optim.Adam(student.parameters(), fused=True)
            lq, gt = (torch.empty(12, 3, 128, 128) for _ in range(2))
            for _ in range(2):  # the first makes Adam's state
                with StepCost() as cost:
                    optimizer.zero_grad()
                    with torch.autocast("cpu", torch.bfloat16):
                        restored = student(lq)
                    (restored.float() - gt).abs().mean().backward()
                    optimizer.step()
        costs.append((cost.kernels, round(cost.bytes / 1e9)))
    assert costs == [(9_816, 285), (2_876, 114)]


def test_training_gives_the_same_losses_and_resumes_exactly(toy_data, tmp_path, monkeypatch):
    folders = [toy.beside(toy_data, tmp_path / name) for name in ("whole", "interrupted", "plain")]
    whole = toy.run_here(folders[0], toy.STILL, ema_decay=0.9)
    toy.run_here(folders[1], toy.STILL, ema_decay=0.9, stop_at_step=5)
    resumed = toy.run_here(folders[1], toy.STILL, ema_decay=0.9)
    assert toy.losses(resumed) == toy.losses(whole) and toy.same(toy.weights(resumed), toy.weights(whole))
    monkeypatch.setattr(gpu_blocks, "DEVICES", set())
    plain = toy.run_here(folders[2], toy.STILL, ema_decay=0.9)
    toy.assert_losses_near(toy.losses(whole), toy.losses(plain), 1e-3)
    assert not toy.same(toy.weights(whole), toy.weights(plain))  # to rounding: another formulation did run


def test_costs_are_counted_as_documented():
    a, weights = torch.ones(8, 4), [torch.ones(3) for _ in range(130)]
    x, filters = torch.ones(2, 4, 5, 5, requires_grad=True), torch.ones(4, 1, 3, 3, requires_grad=True)
    counted = {}
    for name, function in {
        "views": lambda: a.T.view(4, 8).detach(),
        "product": lambda: a @ a.T,
        "in place": lambda: a.add_(1),
        "overwriting": lambda: a.copy_(torch.empty(4).expand(8, 4)),
        "lists": lambda: torch._foreach_add_(weights, weights),
        "convolution": lambda: torch.conv2d(x, filters, padding=1, groups=4).backward(torch.ones(2, 4, 5, 5)),
    }.items():
        with StepCost() as cost:
            function()
        counted[name] = (cost.kernels, cost.bytes, cost.operations)
    image, taps = 4 * x.numel(), 4 * filters.numel()
    assert counted == {
        "views": (0, 0, 0),
        "product": (1, 4 * (32 + 32 + 64), 2 * 64 * 4),
        "in place": (1, 4 * (32 + 32), 0),
        "overwriting": (1, 4 * (4 + 32), 0),
        "lists": (3, 130 * 3 * 4 * 3, 0),
        # forward; the gradient, which `torch.ones` writes; of the input; of the filters
        "convolution": (4, (2 * image + taps) + image + (2 * image + taps) + (2 * image + taps), 3 * 2 * 9 * x.numel()),
    }
