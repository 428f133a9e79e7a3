"""Blocks computed in strips of rows equal blocks computed whole, at every place where a strip can end."""

import pytest
import torch

from student.network.blocks import RestormerBlock
from student.network.fusion import FUSIONS
from student.restoration import strips
from student.restoration.blocks import RestoringRestormerBlock, Statistics
from student.restoration.memory import _LiveBytes

CHANNELS, DIM = 24, 8


@pytest.fixture
def block() -> RestormerBlock:
    return RestormerBlock(CHANNELS, heads=2, expansion=2.66, fusion=FUSIONS["broadcast"](CHANNELS, DIM))


@pytest.mark.parametrize("rows", [4, 5, 100])
@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13])
def test_strips_equal_the_whole(block, monkeypatch, height, rows):
    monkeypatch.setattr(strips, "STRIP_BYTES", 0)
    monkeypatch.setattr(strips, "FEWEST_ROWS", rows)
    x = torch.randn(2, height, 7, CHANNELS)
    before = x.clone()
    condition = block.fusion.prepare(torch.randn(2, DIM))
    restoring = RestoringRestormerBlock(block, Statistics())
    assert not strips.usable(x)  # with gradients: the whole image at once
    assert torch.equal(restoring(x, *condition), block(x, *condition))
    with torch.no_grad():
        assert strips.usable(x)
        whole, stripped = block(x, *condition), restoring(x, *condition)
    torch.testing.assert_close(stripped, whole, atol=2e-6, rtol=1e-5)
    assert torch.equal(x, before)


def test_memory_does_not_grow_with_the_inner_width(block, monkeypatch):
    monkeypatch.setattr(strips, "STRIP_BYTES", 2**16)
    x = torch.randn(1, 512, 64, CHANNELS)
    with torch.no_grad():
        condition = block.fusion.prepare(torch.randn(1, DIM))
        with _LiveBytes() as live:
            RestoringRestormerBlock(block, Statistics())(x, *condition)
    # The input, the fused features, the values and the result; the inner features alone would be 5.3 times the input.
    assert live.peak < 4 * x.nbytes + 2**19


def test_other_precisions_and_compilation_take_the_whole_path():
    with torch.no_grad():
        assert not strips.usable(torch.zeros(1, dtype=torch.bfloat16))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not strips.usable(torch.zeros(1))
        assert torch.compile(lambda x: x + strips.usable(x), backend="eager")(torch.zeros(1)).item() == 0
