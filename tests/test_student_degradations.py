"""Degradations against their definitions: same size, same seed same bytes, and the strength that was asked for."""

import math

import numpy as np
import pytest

from student.data.degradations import KINDS, DegradationSpec, degrade
from student.data.resize import bicubic_resize, resize_as_8_bit, resize_integers
from student.params import ParamsError, load_section


def made(gt: np.ndarray, seed: int = 0, **spec) -> np.ndarray:
    return degrade(gt, DegradationSpec(**spec), np.random.default_rng(seed))


def image(height: int = 48, width: int = 40) -> np.ndarray:
    y, x = (side[..., None] for side in np.mgrid[:height, :width])
    return (0.5 + 0.3 * np.sin(0.2 * y + 0.5 * x + np.arange(3))).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_shape_range_and_seed(kind):
    gt = image()
    one, again, other = (made(gt, seed, kind=kind) for seed in (1, 1, 2))
    assert one.shape == gt.shape and one.dtype == np.float32 and 0 <= one.min() <= one.max() <= 1
    assert np.array_equal(one, again) and np.array_equal(one, gt) is (kind == "identity")
    assert np.array_equal(one, other) is (kind in ("identity", "bicubic", "kspace"))


def cubic(x: float) -> float:
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def imresize(line: list[float], size: int) -> list[float]:
    """MATLAB's definition for one line, in plain arithmetic: u = x/s + (1 - 1/s)/2, 1-based; h(x) = s·k(s·x), s < 1."""
    scale, out = size / len(line), []
    for position in range(1, size + 1):
        centre = position / scale + 0.5 * (1 - 1 / scale)
        stretch = min(scale, 1)
        total = weight = 0.0
        for tap in range(math.floor(centre - 2 / stretch) - 1, math.ceil(centre + 2 / stretch) + 2):
            k = stretch * cubic(stretch * (centre - tap))
            mirrored = (tap - 1) % (2 * len(line))
            total += k * line[mirrored if mirrored < len(line) else 2 * len(line) - 1 - mirrored]
            weight += k
        out.append(total / weight)
    return out


@pytest.mark.parametrize(("length", "size"), [(16, 4), (13, 4), (4, 16), (9, 9), (3, 12), (32, 8)])
def test_bicubic_is_matlabs_definition(length, size):
    line = np.random.default_rng(length).random(length)
    picture = np.repeat(line[:, None, None], 3, axis=1).repeat(3, axis=2)
    expected = pytest.approx(imresize(line.tolist(), size), abs=1e-6)
    assert bicubic_resize(picture, size, 3)[:, 1, 2] == expected
    assert bicubic_resize(picture.transpose(1, 0, 2), 3, size)[1, :, 2] == expected


def test_integers_are_rounded_as_matlab_rounds_uint8():
    """Whole levels after the rows and after the columns, halves upwards; in exact fractions, without a float."""
    from fractions import Fraction

    image = np.random.default_rng(0).integers(0, 256, (12, 8, 1), dtype=np.uint8)
    image[:, :2] = np.resize((0, 255), (12, 2, 1))  # edges overshoot, and are cut off

    def line(values: list[int], size: int) -> list[int]:
        scale, out = Fraction(size, len(values)), []
        stretch = min(scale, Fraction(1))
        for position in range(size):
            centre = (position + Fraction(1, 2)) / scale - Fraction(1, 2)
            taps = range(math.floor(centre - 2 / stretch), math.ceil(centre + 2 / stretch) + 1)
            weights = []
            for tap in taps:
                x = abs(stretch * (centre - tap))
                near, far = (3 * x**3 - 5 * x**2 + 2) / 2, (-(x**3) + 5 * x**2 - 8 * x + 4) / 2
                weights.append(near if x <= 1 else far if x < 2 else Fraction(0))
            mirrored = (tap % (2 * len(values)) for tap in taps)
            seen = (int(values[m if m < len(values) else 2 * len(values) - 1 - m]) for m in mirrored)
            exact = sum(w * v for w, v in zip(weights, seen, strict=True)) / sum(weights)
            out.append(min(max(math.floor(exact + Fraction(1, 2)), 0), 255))
        return out

    for height, width in ((6, 4), (24, 16), (36, 24), (48, 32), (4, 4), (3, 2)):
        rows = np.array([line(image[:, x, 0].tolist(), height) for x in range(8)]).T
        expected = np.array([line(row.tolist(), width) for row in rows])
        assert np.array_equal(resize_integers(image, height, width)[..., 0], expected), (height, width)
        as_floats = resize_as_8_bit(image.astype(np.float32) / 255, height, width)
        assert np.array_equal(np.rint(as_floats[..., 0] * 255), expected), "on the fly, it is the same image"


def test_antialiasing_removes_what_the_small_image_cannot_hold():
    stripes = np.tile(np.array([0, 1], np.float32), 32)[:, None, None].repeat(8, 1)
    inner = bicubic_resize(stripes, 16, 8)[2:-2]  # mirroring breaks the stripes at the border
    assert np.abs(inner - 0.5).max() < 1e-6


def test_gaussian_noise_is_truncated_to_integers():
    gt = np.full((200, 200, 3), 100 / 255, np.float32)
    noisy = made(gt, kind="gaussian_noise", sigma=15) * 255
    assert np.allclose(noisy, np.round(noisy), atol=1e-3)
    # truncation lowers the mean by half a level, as in the published test sets
    assert noisy.std() == pytest.approx(15, rel=0.02) and noisy.mean() == pytest.approx(99.5, abs=0.15)
    smooth = made(gt, kind="gaussian_noise", sigma=15, quantize=False)
    assert smooth.mean() * 255 == pytest.approx(100, abs=0.15)


def test_kspace_keeps_the_centre_of_the_spectrum_only():
    gt = np.random.default_rng(0).random((64, 48, 1)).repeat(3, 2).astype(np.float32) * 0.5 + 0.25
    spectrum = np.abs(np.fft.fftshift(np.fft.fft2(made(gt, kind="kspace")[..., 0])))
    assert spectrum[:20].max() < 1e-3 * spectrum.max() and spectrum[:, :15].max() < 1e-3 * spectrum.max()
    assert spectrum[28:37, 20:29].min() > 1e-6 * spectrum.max()


def test_rician_noise_of_nothing_is_rayleigh():
    gt = np.zeros((300, 300, 3), np.float32)
    noisy = made(gt, kind="rician_noise", sigma=20) * 255
    assert noisy.mean() == pytest.approx(20 * math.sqrt(math.pi / 2), rel=0.02)
    assert np.array_equal(noisy[..., 0], noisy[..., 2])


@pytest.mark.parametrize(
    "kind, key, values",
    [("rain", "amount", (0.1, 0.5, 0.9)), ("cloud", "amount", (0.1, 0.5, 0.9)), ("jpeg", "quality", (95, 40, 10))],
)
def test_more_of_it_hides_more(kind, key, values):
    gt = image(96, 96) * 0.5
    errors = [np.abs(made(gt, 3, kind=kind, **{key: value}) - gt).mean() for value in values]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_rain_and_haze_only_add_light():
    gt = image(96, 96) * 0.5
    rain, hazy = made(gt, kind="rain", amount=0.5), made(gt, kind="haze", amount=0.6)
    assert (rain >= gt - 1e-6).all() and (rain > gt + 0.02).any()
    assert hazy.mean() > gt.mean() and hazy.std() < gt.std()


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"kind": "snow"}, "kind = 'snow': .* must be one of identity, gaussian_noise"),
        ({"kind": "rain", "amount": [0.9, 0.1]}, "smaller end"),
        ({"kind": "rain", "amount": 1.5}, "between 0 and 1"),
        ({"kind": "jpeg", "quality": [0, 50]}, "between 1 and 100"),
    ],
)
def test_wrong_specs_are_refused(spec, words):
    with pytest.raises(ParamsError, match=words):
        load_section(DegradationSpec, "degradation", {"degradation": spec})


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must be \[H, W, 3\], not \[8, 8\]"):
        made(np.zeros((8, 8)), kind="rain")


def test_a_range_is_drawn_from_anew_and_seeded():
    gt, spec = image(), {"kind": "gaussian_noise", "sigma": (5, 50), "quantize": False}
    strengths = [float((made(gt, seed, **spec) - gt).std()) * 255 for seed in range(40)]
    assert min(strengths) < 15 and max(strengths) > 38
    assert strengths[3] == float((made(gt, 3, **spec) - gt).std()) * 255


def test_gray_stays_gray_under_every_kind():
    gt = image().mean(2, keepdims=True).repeat(3, 2)
    for kind in set(KINDS) - {"haze"}:  # haze has a tint of its own
        lq = made(gt, kind=kind)
        assert np.abs(lq - lq[..., :1]).max() < 1e-6, kind
