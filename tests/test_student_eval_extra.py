"""Metrics of torchmetrics by name: cropped like PSNR, none where undefined, and one line for what is missing."""

import sys

import numpy as np
import pytest
from test_student_metrics import photo_pair

from student.evaluation.extra_metrics import EXTRA_METRICS, check_extra_metrics, extra_metric, label
from student.evaluation.metrics import MetricError

PLAIN = [name for name, extra in EXTRA_METRICS.items() if extra.net is None]


@pytest.mark.parametrize(("name", "perfect"), [("sam", 0.0), ("vif", 1.0), ("uqi", 1.0)])
def test_extra_metrics_by_name(name, perfect):
    restored, gt = photo_pair(64, 64)
    assert extra_metric(name, gt, gt) == pytest.approx(perfect, abs=2e-3)
    assert abs(extra_metric(name, restored, gt) - perfect) > 0.01


def test_an_angle_to_black_is_none():
    restored, gt = photo_pair()
    assert extra_metric("sam", restored, gt) > 0
    gt[:, 3, 4] = 0
    assert extra_metric("sam", restored, gt) is None


@pytest.mark.parametrize("name", PLAIN)
def test_a_border_is_left_out(name):
    restored, gt = photo_pair(192, 184)
    broken_frame = restored.copy()
    broken_frame[:, :4] = 0.5
    broken_frame[:, :, -4:] = 1
    assert extra_metric(name, broken_frame, gt, 4) == extra_metric(name, restored, gt, 4)
    assert extra_metric(name, broken_frame, gt) != extra_metric(name, restored, gt)
    assert extra_metric(name, restored, gt, 4) == extra_metric(name, restored[:, 4:-4, 4:-4], gt[:, 4:-4, 4:-4])


@pytest.mark.parametrize("name", PLAIN)
def test_an_image_that_is_too_small_has_none(name):
    """The sizes in the table are torchmetrics' own: one pixel less fails there, or gives NaN."""
    smallest = EXTRA_METRICS[name].smallest
    assert extra_metric(name, *photo_pair(smallest, smallest + 9, noise=0.01)) is not None
    if smallest > 1:
        assert extra_metric(name, *photo_pair(smallest - 1, smallest + 9)) is None
        assert extra_metric(name, *photo_pair(smallest + 7, smallest + 9), 4) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: check_extra_metrics(["lpisp"]), "choose from lpips"),
        (lambda a, b: extra_metric("sam", a, b[:, 1:]), "restored is 57x48 but gt is 57x47"),
        (lambda a, b: extra_metric("sam", a, b, 24), "nothing is left"),
    ],
)
def test_what_cannot_be_measured_says_why(call, message):
    with pytest.raises(MetricError, match=message):
        call(*photo_pair())


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_without_torchvision_the_remedy_is_one_line(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MetricError, match="needs .*torchvision of this torch's version and build") as raised:
        check_extra_metrics([name])
    assert len(str(raised.value).splitlines()) == 1 and name in str(raised.value)


def test_labels_name_the_net():
    assert [label(name) for name in ("lpips", "dists", "sam")] == ["lpips (alex)", "dists (vgg16)", "sam"]
    assert EXTRA_METRICS["lpips"].settings["net_type"] == "alex"


def test_values_are_finite_or_none():
    gt = np.zeros((3, 64, 64), np.float32)
    assert all(value is None or np.isfinite(value) for value in (extra_metric(name, gt, gt) for name in PLAIN))
