"""Metrics of torchmetrics by name: cropped like PSNR, none where undefined, and one line for what is missing."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
from test_student_metrics import photo_pair

from student.evaluation import extra_metrics as eval_extra
from student.evaluation.extra_metrics import (
    EXTRA_METRICS,
    check_extra_metrics,
    extra_metric,
    label,
    torchvision_command,
)
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
        (lambda a, b: extra_metric("lpisp", a, b), "choose from lpips"),
        (lambda a, b: extra_metric("sam", a, b[:, 1:]), "restored is 57x48 but gt is 57x47"),
        (lambda a, b: extra_metric("sam", a, b, 24), "nothing is left"),
    ],
)
def test_what_cannot_be_measured_says_why(call, message):
    with pytest.raises(MetricError, match=message):
        call(*photo_pair())


@pytest.mark.parametrize(
    ("torch_version", "command"),
    [
        ("2.7.1", "pip install torchvision==0.22.1"),
        ("2.13.0+cpu", "pip install torchvision==0.28.0+cpu, from the index of this torch"),
        ("2.9.0+cu126", "pip install torchvision==0.24.0+cu126, from the index of this torch"),
    ],
)
def test_the_torchvision_of_this_torch(monkeypatch, torch_version, command):
    """Checked against the pins of the wheels: 0.22.0 asks for torch 2.7.0, 0.28.0 for 2.13.0."""
    monkeypatch.setattr(eval_extra, "version", lambda package: torch_version)
    assert torchvision_command() == command


@pytest.mark.parametrize("name", ["lpips", "dists"])
@pytest.mark.parametrize(
    "call", [lambda name: check_extra_metrics([name]), lambda name: extra_metric(name, *photo_pair())]
)
def test_without_torchvision_the_command_is_named(monkeypatch, name, call):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MetricError, match="needs torchvision .*: pip install torchvision==0") as raised:
        call(name)
    assert len(str(raised.value).splitlines()) == 1


def test_a_torchvision_of_another_build_is_named_for_every_metric(monkeypatch, tmp_path):
    """One built for CUDA, beside a torch for CPUs: torchmetrics cannot be imported then."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(
        MetricError, match="nms does not exist.*: pip install --force-reinstall --no-deps torchvision==0"
    ):
        check_extra_metrics(["sam"])


def torchvision_with(monkeypatch, get_state_dict) -> None:
    """A torchvision of the same build, as far as the check looks at it."""
    package, models = ModuleType("torchvision"), ModuleType("torchvision.models")
    weights = SimpleNamespace(url="https://example.org/models/alexnet-1.pth", get_state_dict=get_state_dict)
    models.AlexNet_Weights = SimpleNamespace(DEFAULT=weights)
    package.models, package.__spec__ = models, ModuleSpec("torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def test_missing_weights_are_named_with_their_place(monkeypatch, tmp_path):
    def offline(progress):
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torchvision_with(monkeypatch, offline)
    file = tmp_path / "hub" / "checkpoints" / "alexnet-1.pth"
    with pytest.raises(MetricError) as raised:
        check_extra_metrics(["lpips"])
    message = str(raised.value)
    assert "lpips (alex)" in message and str(file) in message and "https://example.org/models/alexnet-1.pth" in message
    assert "Name or service not known" in message and "TORCH_HOME" in message and len(message.splitlines()) == 1
    file.parent.mkdir(parents=True)
    file.touch()
    check_extra_metrics(["lpips"])


def test_labels_name_the_net():
    assert [label(name) for name in ("lpips", "dists", "sam")] == ["lpips (alex)", "dists (vgg16)", "sam"]
    assert EXTRA_METRICS["lpips"].settings["net_type"] == "alex"


def test_values_are_finite_or_none():
    gt = np.zeros((3, 64, 64), np.float32)
    assert all(value is None or np.isfinite(value) for value in (extra_metric(name, gt, gt) for name in PLAIN))
