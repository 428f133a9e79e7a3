"""The six losses: values known by hand, against other code, and as gradients over several processes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_student import losses_of

from student.model import Student
from student.network.config import ModelConfig
from student.network.prompts import PromptPool
from student.training import losses as L

SMALL = ModelConfig(
    width=8, encoder_blocks=(1,), latent_blocks=1, decoder_blocks=(1,), refinement_blocks=0, heads=(1, 2),
    task_pool_size=4, task_top_k=2, domain_pool_size=5, domain_top_k=2, prompt_dim=16, dropout=0, selection_noise=0,
)  # fmt: skip


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_pixel_and_fft_equal_numpy():
    restored, gt = random(2, 3, 8, 6), random(2, 3, 8, 6, seed=1)
    assert L.loss_pixel(restored, gt).item() == pytest.approx(np.abs((restored - gt).numpy()).mean(), rel=1e-6)
    difference = np.fft.fft2(restored.numpy()) - np.fft.fft2(gt.numpy())
    expected = np.stack([difference.real, difference.imag]).__abs__().mean()
    assert L.loss_fft(restored, gt).item() == pytest.approx(expected, rel=1e-5)


def test_align_is_one_minus_cosine_over_the_rows_that_have_a_prior():
    prompt, prior = torch.eye(3).requires_grad_(), torch.tensor([[2.0, 0, 1], [0, -1, 0], [float("nan")] * 3])
    loss = L.loss_align(prompt, prior, torch.tensor([True, True, False]))
    assert loss.item() == pytest.approx((1 - 2 / 5**0.5 + 2) / 2)
    loss.backward()
    assert prompt.grad[0].abs().sum() > 0 and not prompt.grad[:2].isnan().any()
    assert L.loss_align(prompt, prior, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_diversity_is_zero_for_prompts_less_alike_than_the_margin():
    orthogonal = torch.eye(4).reshape(4, 2, 2)
    assert L.loss_diversity(orthogonal, 0.1).item() == 0
    alike = torch.cat([orthogonal[:1], 3 * orthogonal[:1], orthogonal[1:2]])  # pairs: cos 1, 0, 0
    assert L.loss_diversity(alike, 0.1).item() == pytest.approx(0.9 / 3)


def test_balance_is_zero_for_even_use_and_log_n_for_one_prompt():
    assert L.loss_balance(torch.zeros(5, 8)).item() == pytest.approx(0, abs=1e-6)
    assert L.loss_balance(100 * torch.eye(8)).item() == pytest.approx(0, abs=1e-5)  # even over the batch
    one = torch.zeros(5, 8)
    one[:, 3] = 200
    assert L.loss_balance(one).item() == pytest.approx(math.log(8), rel=1e-5)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=7), st.integers(0, 99))
@settings(max_examples=40)
def test_contrastive_equals_its_definition_written_as_loops(labels, seed):
    prompt, t = random(len(labels), 5, seed=seed), 0.1
    unit = torch.nn.functional.normalize(prompt, dim=1).double()
    anchors = []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        positives = [j for j in others if labels[j] == label]
        if positives:
            scale = math.log(sum(math.exp(unit[i] @ unit[j] / t) for j in others))
            anchors.append(-sum((unit[i] @ unit[j] / t).item() - scale for j in positives) / len(positives))
    loss = L.loss_contrastive(prompt, torch.tensor(labels), t).item()
    assert loss == pytest.approx(np.mean(anchors) if anchors else 0, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("label", [[0, 0, 1, 1, 2], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]])
def test_gradients_of_contrastive_balance_diversity_and_align_are_those_of_finite_differences(label):
    rows, labels = random(5, 6).double().requires_grad_(), torch.tensor(label)
    prior, found = random(5, 6, seed=1).double(), torch.tensor(label) != 1
    for loss in (
        lambda x: L.loss_contrastive(x, labels, 0.1),
        L.loss_balance,
        lambda x: L.loss_diversity(x.unflatten(1, (2, 3)), -0.5),
        lambda x: L.loss_align(x, prior, found),
    ):
        assert torch.autograd.gradcheck(loss, rows)


def test_contrastive_falls_to_almost_nothing_where_queries_tell_the_labels_apart():
    """By training a pool alone: the floor is log(positives) a row, and log(rows - 1) is where prompts are all alike."""
    torch.manual_seed(0)
    pool, centres = PromptPool(8, 3, 2, 16, selection_noise=0.1), random(4, 16)
    labels = torch.arange(4).repeat(3)
    optimizer = torch.optim.Adam(pool.parameters(), lr=3e-3)
    history = []
    for step in range(150):
        queries = centres[labels] + 0.1 * random(12, 16, seed=step)
        loss = L.loss_contrastive(pool(queries).prompt_BD, labels, 0.1)
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    floor = math.log(2)
    assert history[0] > floor + 0.5 and history[-1] < floor + 0.1


def student_losses(weights: dict[str, float], student: Student | None = None, dtype: torch.dtype | None = None):
    torch.manual_seed(0)
    student = student or Student(SMALL)
    return student, losses_of(student, random(4, 3, 16, 16), weights, dtype)


@pytest.mark.parametrize("term", L.TERMS)
def test_each_weight_moves_its_own_loss(term):
    """Alone, it is the only one computed, scales with its weight, and a small step along its gradient lowers it."""
    student, before = student_losses({term: 1.0})
    assert set(before.raw) == {term}
    before.total.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1e-9)
    torch.optim.SGD(student.parameters(), lr=0.03 / 1e-9).step()
    _, after = student_losses({term: 1.0}, student)
    assert after.raw[term] < before.raw[term]
    _, doubled = student_losses({term: 2.0})
    assert doubled.total.item() == pytest.approx(2 * before.total.item(), rel=1e-6)


def test_the_total_is_the_weighted_sum_and_terms_of_both_pools_are_the_mean_of_their_pools():
    weights = {"pixel": 1.0, "fft": 0.1, "align": 0.7, "diversity": 1.3, "balance": 0.1, "contrastive": 0.2}
    student, losses = student_losses(weights)
    assert losses.total.item() == pytest.approx(sum(weights[k] * v.item() for k, v in losses.raw.items()), rel=1e-6)
    parts = [L.loss_diversity(pool.values_NLD, 0.1).item() for pool in student.pools().values()]
    assert len(parts) == 2
    assert losses.raw["diversity"].item() == pytest.approx(sum(parts) / 2, rel=1e-6)


def test_losses_are_computed_in_float32_whatever_the_network_gave():
    _, losses = student_losses({term: 1.0 for term in L.TERMS}, dtype=torch.bfloat16)
    assert {value.dtype for value in losses.raw.values()} == {torch.float32}
