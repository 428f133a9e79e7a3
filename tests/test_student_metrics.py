"""Properties of student.metrics: equal to the formulas, written out here a second time without scikit-image."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from student.evaluation.metrics import MetricError, bootstrap_interval, centre_crop, mean_psnr, psnr, ssim


def photo_pair(height=48, width=57, seed=0, noise=0.08):
    """A smooth picture and a noisy one that also leaves [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 16
    gt = np.stack([0.5 + 0.45 * np.sin(x + i) * np.cos(y * (i + 1)) for i in range(3)]).astype(np.float32)
    return (gt + rng.normal(0, noise, gt.shape)).astype(np.float32), gt


def windows(image, size):
    return np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(-2, -1))


def ssim_by_formula(a, b, peak, kernel, ddof):
    """Wang et al. 2004, eq. 13, over every full window; `ddof` 1 divides the (co)variances by n - 1."""
    wa, wb = windows(a, len(kernel)), windows(b, len(kernel))
    mean_a, mean_b = ((w * kernel).sum((-2, -1)) for w in (wa, wb))
    unbias = kernel.size / (kernel.size - ddof)
    var_a = ((wa**2 * kernel).sum((-2, -1)) - mean_a**2) * unbias
    var_b = ((wb**2 * kernel).sum((-2, -1)) - mean_b**2) * unbias
    cov = ((wa * wb * kernel).sum((-2, -1)) - mean_a * mean_b) * unbias
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return float(
        ((2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()
    )


def gaussian_kernel():
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    return np.outer(taps, taps) / taps.sum() ** 2


def to_uint8(image):
    return np.round(image.clip(0, 1).astype(np.float64) * 255)


def by_formula(restored, gt, variant, crop_border=0):
    if crop_border:
        restored, gt = (x[:, crop_border:-crop_border, crop_border:-crop_border] for x in (restored, gt))
    if variant == "promptir":
        a, b = (x.clip(0, 1).astype(np.float64)[:, : 48 // 16 * 16, 4:52] for x in (restored, gt))
        return 10 * math.log10(1 / ((a - b) ** 2).mean()), ssim_by_formula(a, b, 1.0, np.full((7, 7), 1 / 49), 1)
    a, b = to_uint8(restored), to_uint8(gt)
    if variant == "basicsr_y":
        a, b = ((65.481 * x[0] + 128.553 * x[1] + 24.966 * x[2]) / 255 + 16 for x in (a, b))
    return 10 * math.log10(255**2 / ((a - b) ** 2).mean()), ssim_by_formula(a, b, 255.0, gaussian_kernel(), 0)


@pytest.mark.parametrize("variant", ["basicsr", "basicsr_y", "promptir"])
def test_both_metrics_equal_the_formulas(variant):
    restored, gt = photo_pair()
    expected_psnr, expected_ssim = by_formula(restored, gt, variant)
    assert psnr(restored, gt, variant) == pytest.approx(expected_psnr, abs=1e-6)
    assert ssim(restored, gt, variant) == pytest.approx(expected_ssim, abs=1e-6)


def test_crop_border_leaves_out_a_frame():
    restored, gt = photo_pair()
    expected_psnr, expected_ssim = by_formula(restored, gt, "basicsr", crop_border=4)
    assert psnr(restored, gt, crop_border=4) == pytest.approx(expected_psnr, abs=1e-6)
    assert ssim(restored, gt, crop_border=4) == pytest.approx(expected_ssim, abs=1e-6)
    broken_frame = restored.copy()
    broken_frame[:, :4] = 0
    broken_frame[:, :, -4:] = 1
    assert psnr(broken_frame, gt, crop_border=4) == psnr(restored, gt, crop_border=4)


def test_values_recorded_once_do_not_drift():
    """Computed 2026-11-23 from the formulas above; a change of a library that moves a published number shows here."""
    restored, gt = photo_pair()
    recorded = {"basicsr": (22.02882, 0.42268), "basicsr_y": (26.89738, 0.51762), "promptir": (22.04323, 0.50733)}
    for variant, (expected_psnr, expected_ssim) in recorded.items():
        assert psnr(restored, gt, variant) == pytest.approx(expected_psnr, abs=1e-4), variant
        assert ssim(restored, gt, variant) == pytest.approx(expected_ssim, abs=1e-4), variant


def test_a_known_error_gives_a_known_psnr():
    gt = np.full((3, 16, 16), 100 / 255, np.float32)
    assert psnr(gt + 1 / 255, gt) == pytest.approx(20 * math.log10(255))
    assert psnr(gt + 0.4 / 255, gt) == math.inf, "basicsr rounds to uint8 first"
    assert psnr(gt + 0.4 / 255, gt, "promptir") == pytest.approx(20 * math.log10(255 / 0.4), abs=1e-3)
    assert ssim(gt, gt) == 1.0


@given(st.integers(11, 40), st.integers(11, 40), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_symmetric_bounded_and_worse_with_more_noise(height, width, seed):
    little, gt = photo_pair(height, width, seed, noise=0.02)
    much, _ = photo_pair(height, width, seed, noise=0.2)
    assert psnr(little, gt) == pytest.approx(psnr(gt, little))
    assert psnr(little, gt) > psnr(much, gt)
    assert -1 <= ssim(much, gt) < ssim(little, gt) <= 1


def test_tensors_and_a_batch_of_one_score_the_same():
    restored, gt = photo_pair()
    tensors = torch.from_numpy(restored)[None].requires_grad_(), torch.from_numpy(gt)[None]
    assert psnr(*tensors) == psnr(restored, gt)
    assert ssim(*tensors) == ssim(restored, gt)


def test_centre_crop_is_centred_and_idempotent():
    image = np.arange(3 * 21 * 35).reshape(3, 21, 35)
    cropped = centre_crop(image)
    assert cropped.shape == (3, 16, 32)
    assert (cropped == image[:, 2:18, 1:33]).all(), "an odd margin leaves its extra row and column at the far end"
    assert (centre_crop(cropped) == cropped).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: psnr(a, b[:, 1:]), "restored is 57x48 but gt is 57x47"),
        (lambda a, b: psnr(a, b, "psnr-y"), "unknown metric variant 'psnr-y'"),
        (lambda a, b: psnr(a[:1], b[:1]), r"\[1, 48, 57\]"),
        (lambda a, b: ssim(a[:, :10], b[:, :10]), "57x10 is smaller than the 11 pixels"),
        (lambda a, b: psnr(a[:, :15], b[:, :15], "promptir"), "smaller than 16"),
        (lambda a, b: psnr(a, b, crop_border=24), "nothing is left"),
        (lambda a, b: psnr(a * np.nan, b), "not finite"),
    ],
)
def test_what_cannot_be_compared_says_why(call, message):
    with pytest.raises(MetricError, match=message):
        call(*photo_pair())


def test_bootstrap_interval_brackets_the_mean_and_shrinks_with_images():
    rng = np.random.default_rng(0)
    values = rng.normal(30, 2, 400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1), "the normal approximation for n = 400"
    assert bootstrap_interval(values) == (low, high)
    few_low, few_high = bootstrap_interval(values[:16])
    assert few_high - few_low > 2 * (high - low)
    assert bootstrap_interval([31.0]) == (31.0, 31.0)


def test_an_identical_image_does_not_make_the_mean_infinite():
    assert mean_psnr([30.0, math.inf]) == 65.0
