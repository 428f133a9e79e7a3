"""Tiles: weights sum to one, cover everything, hide nothing; restored tiles agree with the whole image."""

import numpy as np
import pytest
import restore_project
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.model import Student
from student.restoration.memory import available_bytes, forward_bytes
from student.restoration.restorer import RestoreError, Restorer
from student.restoration.tiling import mosaic, plan_axis, plan_tiles


@given(st.integers(1, 700), st.integers(33, 200), st.integers(0, 32), st.sampled_from([1, 2, 8, 16]))
@settings(max_examples=200, deadline=None)
def test_weights_sum_to_one_and_neighbours_overlap(size, tile, overlap, stride):
    size, tile, overlap = (side * stride for side in (size, tile, overlap))
    axis = plan_axis(size, tile, overlap, stride)
    assert not any(start % stride for start in axis.starts)
    assert axis.length <= tile
    total = np.zeros(size)
    for start, weights in zip(axis.starts, axis.weights, strict=True):
        assert weights.min() > 0
        total[start : start + axis.length] += weights
    assert np.allclose(total, 1, atol=1e-6)
    shared = [a + axis.length - b for a, b in zip(axis.starts, axis.starts[1:], strict=False)]
    assert all(overlap <= pixels for pixels in shared), "enough"
    assert sum(shared) < overlap * len(shared) + (len(shared) + 1) * stride, "and no more than rounding up makes it"
    assert axis.starts[-1] + axis.length == size


def test_blending_unchanged_tiles_gives_the_image_back():
    image = np.random.default_rng(0).random((3, 100, 177), np.float32)
    out = np.zeros_like(image)
    for rows, columns, weight in plan_tiles(100, 177, 64, 16):
        out[:, rows, columns] += image[:, rows, columns] * weight
    assert np.allclose(out, image, atol=1e-6)


def test_a_tile_smaller_than_the_overlap_is_refused():
    with pytest.raises(ValueError, match="use a larger tile"):
        plan_axis(100, 32, 32)


@pytest.mark.parametrize("sides", [(100, 32, 16), (96, 33, 16), (96, 32, 7)])
def test_sides_off_the_stride_are_refused(sides):
    with pytest.raises(ValueError, match="multiples of 8"):
        plan_axis(*sides, stride=8)


def test_the_mosaic_samples_every_part_at_native_resolution():
    image = np.broadcast_to(np.arange(8000, dtype=np.float32), (3, 50, 8000))
    sample = mosaic(image, 1024, stride=8)
    assert sample.shape == (3, 50, 1024), "the short side is kept whole"
    parts = sample[0, 0].reshape(8, 128)
    assert (np.diff(parts, axis=1) == 1).all(), "neighbours stay neighbours"
    assert (parts.mean(1) // 1000 == np.arange(8)).all(), "one sample of every eighth"
    assert not (parts[:, 0] % 8).any()


@given(st.integers(9, 300), st.integers(8, 60))
@settings(max_examples=100, deadline=None)
def test_a_small_mosaic_has_fewer_pieces_within_the_image(size, side):
    size, side = 8 * size, 8 * side
    pixels = mosaic(np.arange(size)[None, None].repeat(8, 1), side, stride=8)[0, 0]
    assert len(pixels) <= max(side, size if size <= side else 0) and len(set(pixels)) == len(pixels)
    assert (np.diff(pixels) != 1).sum() < max(1, side // 128)


@pytest.fixture(scope="module")
def student(model):
    return Student.from_pretrained(model)


def smooth(height, width):
    y, x = np.mgrid[0:height, 0:width] / 20
    return np.stack([0.5 + 0.4 * np.sin(x + i) * np.cos(y) for i in range(3)]).astype(np.float32)


def textured(height, width):
    """Waves under noise that grows from left to right: tiles differ in what they would mix their channels by."""
    noise = np.random.default_rng(0).normal(0, 0.1, (3, height, width)) * np.linspace(0, 2, width)
    return (smooth(height, width) + noise).clip(0, 1).astype(np.float32)


def agreement(a, b):
    return 10 * np.log10(1 / ((a - b) ** 2).mean())


@pytest.mark.parametrize("height, width", [(152, 208), (150, 211)])
def test_tiles_agree_with_the_whole_image_and_batches_with_single_tiles(student, height, width):
    lq = textured(height, width)
    whole = Restorer(student, "cpu", tile="off")(lq)
    tiled = Restorer(student, "cpu", tile=96, overlap=32)(lq)
    assert whole.tiles == 1 and tiled.tiles == 6
    assert np.abs(whole.image - lq).mean() > 0.01, "the student changes the image"
    assert agreement(whole.image, tiled.image) > 60
    batched = Restorer(student, "cpu", tile=96, overlap=32, batch=4)(lq)
    assert np.allclose(batched.image, tiled.image, atol=1e-5)


@pytest.mark.parametrize("fault", ["each tile by itself", "starts off the stride"])
def test_the_agreement_needs_both_statistics_and_stride(student, monkeypatch, fault):
    from student.restoration import restorer as restore_engine

    restorer, lq = Restorer(student, "cpu", tile=96), textured(152, 204)
    whole = Restorer(student, "cpu", tile="off")(lq).image
    good = agreement(whole, restorer(lq).image)
    if fault == "starts off the stride":
        monkeypatch.setattr(restore_engine, "plan_tiles", lambda *sides: plan_tiles(*sides[:-1]))
    else:
        monkeypatch.setattr(restorer.statistics, "start", lambda: None)
        monkeypatch.setattr(restorer, "refine", 0)
    assert agreement(whole, restorer(lq).image) < good - 6


@pytest.mark.parametrize("backbone", ["restormer", "nafnet"])
def test_going_over_the_tiles_first_makes_them_agree_where_a_sample_misleads(tmp_path, monkeypatch, backbone):
    from student.restoration import restorer as restore_engine

    student = Student.from_pretrained(restore_project.save_student(tmp_path, backbone=backbone))
    for name, parameter in student.named_parameters():
        if name.endswith((".beta", ".gamma")):  # 0 at first: NAFNet's blocks then change nothing
            parameter.data.fill_(0.5)
        if name.endswith("channel_gain.weight"):  # and barely see the other pixels
            parameter.data.mul_(20)
    lq = textured(152, 208)
    lq[:, :, :64] = 0  # what a sample of the left says is wrong for the rest
    whole = Restorer(student, "cpu", tile="off")(lq).image
    monkeypatch.setattr(restore_engine, "_sample", lambda lq, side, stride: lq[:, :, :80])
    prompts = student.encode_prompts(torch.from_numpy(lq)[None])
    monkeypatch.setattr(Student, "encode_prompts", lambda *_: prompts)
    reports = []
    tiled = [Restorer(student, "cpu", tile=96, refine=n) for n in (0, 1, 2)]
    close = [agreement(whole, one(lq, on_tile=lambda *report: reports.append(report)).image) for one in tiled]
    assert close[0] + 6 < close[1] and close[2] > max(55, close[1] - 1), close
    assert reports[-18:] == [(i, 18) for i in range(1, 19)], "progress counts all passes"


@given(st.integers(1, 60), st.integers(2, 12), st.integers(0, 8))
def test_every_pixel_is_in_one_core(size, tile, overlap):
    size, tile, overlap = 8 * size, 8 * (tile + overlap), 8 * overlap
    axis = plan_axis(size, tile, overlap, 8)
    seen = [
        start + i for start, core in zip(axis.starts, axis.cores(8), strict=True) for i in range(core.start, core.stop)
    ]
    assert seen == list(range(size))
    assert all(0 <= core.start < core.stop <= axis.length and core.start % 8 == 0 for core in axis.cores(8))


def test_all_tiles_share_the_prompts_of_the_whole_image(student):
    lq = smooth(150, 210)
    whole, tiled = (Restorer(student, "cpu", tile=tile)(lq) for tile in ("off", 96))
    assert torch.equal(whole.prompts.task.index_BK, tiled.prompts.task.index_BK)
    assert torch.allclose(whole.prompts.fused, tiled.prompts.fused, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 300), (15, 16)])
def test_any_size_is_restored_at_its_size(student, size):
    result = Restorer(student, "cpu")(smooth(*size))
    assert result.image.shape == (3, *size) and np.isfinite(result.image).all()


def test_auto_shrinks_the_tile_with_the_free_memory(student, monkeypatch):
    from student.restoration import restorer as restore_engine

    restorer = Restorer(student, "cpu", tile="auto")
    monkeypatch.setattr(restore_engine, "available_bytes", lambda device: 1e15)
    assert restorer.choose_tile(4000, 6000) is None
    chosen = []
    for gigabytes in (1.0, 0.5, 0.1):
        monkeypatch.setattr(restore_engine, "available_bytes", lambda device, b=gigabytes * 1e9: b)
        chosen.append(restorer.choose_tile(4000, 6000))
        assert restorer._forward_bytes(chosen[-1] ** 2) <= gigabytes * 1e9 / 2
    assert 512 >= chosen[0] >= chosen[1] > chosen[2] >= 64
    monkeypatch.setattr(restore_engine, "available_bytes", lambda device: 0)
    assert restorer.choose_tile(4000, 6000) >= 64, "too little is tried, not refused"


def test_memory_kept_from_one_image_is_there_for_the_next(student):
    def change(bytes_more: int) -> float:
        restorer = Restorer(student, "cpu", tile="auto")
        before = restorer.free_bytes()
        kept = torch.ones(bytes_more // 4)  # more than before, and it stays with the process when it is freed
        size = kept.nbytes
        del kept
        return abs(restorer.free_bytes() - before) / size

    # Other processes take and free memory meanwhile, but hardly each time.
    assert any(change(megabytes << 20) < 0.5 for megabytes in (256, 600, 1000))


def test_counted_memory_grows_with_pixels_and_is_what_tensors_take(student):
    count = forward_bytes(student)
    assert count(512**2) > 3 * count(256**2) > 0
    least = 4 * 3 * 8 * 256**2  # input and a few maps of eight channels must be alive at once
    assert least < count(256**2) < 100 * least
    assert 1e8 < available_bytes(torch.device("cpu")) < 1e14


@pytest.mark.parametrize(("tile", "overlap", "message"), [(16, 32, "at least 64"), (70, 78, "at least 84 .* 80")])
def test_an_impossible_tile_is_refused(student, tile, overlap, message):
    with pytest.raises(RestoreError, match=message):
        Restorer(student, "cpu", tile=tile, overlap=overlap)


def test_an_absent_device_is_refused(student):
    with pytest.raises(RestoreError, match="try --device cpu"):
        Restorer(student, "cuda:99")
