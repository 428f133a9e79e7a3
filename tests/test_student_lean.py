"""Products that keep little for the backward pass: the same values and the same gradients, bit for bit."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from student.network.recompute import gated_product, project

P, C, K = 50, 12, 20


def gradients(outputs, inputs):
    return torch.autograd.grad(sum((output * output.detach().cos()).sum() for output in outputs), inputs)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_projections_equal_plain_autograd(count):
    norm = nn.LayerNorm(C)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, *weights = inputs = [torch.randn(size, requires_grad=True) for size in [(2, P, C), *[(K, C)] * count]]
    inputs += [norm.weight, norm.bias]
    ours = project(x, norm, tuple(weights))
    normed = norm(x)
    plain = tuple(F.linear(normed, weight) for weight in weights)
    assert all(map(torch.equal, ours, plain))
    assert all(map(torch.equal, gradients(ours, inputs), gradients(plain, inputs)))


def test_the_gated_product_equals_plain_autograd():
    inputs = [torch.randn(size, requires_grad=True) for size in ((2, P, K), (2, P, K), (C, K))]
    a, b, weight = inputs
    ours, plain = gated_product(a, b, weight), F.linear(F.gelu(a) * b, weight)
    assert torch.equal(ours, plain)
    assert all(map(torch.equal, gradients([ours], inputs), gradients([plain], inputs)))


def test_nothing_but_the_inputs_is_kept():
    a, b, weight = (torch.randn(size, requires_grad=True) for size in ((P, K), (P, K), (C, K)))
    x, norm, up = torch.randn(P, C, requires_grad=True), nn.LayerNorm(C), torch.randn(K, C, requires_grad=True)
    inputs = {tensor.data_ptr() for tensor in (a, b, weight, x, up, norm.weight, norm.bias)}
    kept = []

    def pack(tensor):
        if tensor.data_ptr() not in inputs:
            kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gated_product(a, b, weight), project(x, norm, (up, up))
    assert kept == [P, P]  # the norm's mean and deviation of each pixel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_no_more_and_gives_the_gradients_of_plain_autocast(dtype):
    norm = nn.LayerNorm(C)
    nn.init.normal_(norm.bias)
    sizes = [(P, C), (K, C), (K, C), (C, K)]
    x, first, second, out = inputs = [torch.randn(size, requires_grad=True) for size in sizes]
    with torch.no_grad():
        x.copy_(x.to(dtype))  # features are in half precision already: below it would be rounded earlier than in plain
    inputs = [*inputs, norm.weight, norm.bias]

    def ours():
        return gated_product(*project(x, norm, (first, second)), out)

    def plain():
        normed = norm(x)
        return F.linear(F.gelu(F.linear(normed, first)) * F.linear(normed, second), out)

    def run(function):
        kept = {}
        pack = lambda tensor: kept.setdefault(tensor.data_ptr(), tensor)  # noqa: E731
        with torch.autocast("cpu", dtype), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = function()
        known = {tensor.data_ptr() for tensor in inputs}
        size = sum(tensor.nbytes for pointer, tensor in kept.items() if pointer not in known)
        return output, torch.autograd.grad(output.float().square().mean(), inputs), size

    (output, gradients_, kept), (expected, expected_gradients, plain_kept) = run(ours), run(plain)
    assert output.dtype == expected.dtype == dtype
    assert (output - expected).norm() < 0.02 * expected.norm()
    for ours_, theirs in zip(gradients_, expected_gradients, strict=True):
        assert ours_.dtype == torch.float32
        assert (ours_ - theirs).norm() < 0.02 * theirs.norm()
    assert kept < plain_kept
