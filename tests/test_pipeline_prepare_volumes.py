"""Volumes as people have them: a single plane, a series, none at all."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from pipeline import prepare


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_plane_and_a_series_are_cut_and_an_empty_volume_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).random((20, 24, 3, 2)).astype(np.float32)
    for name, volume in (
        ("plane", values[..., 0, 0]),
        ("series", values),
        ("empty", 0 * values),
        ("whole", values[..., 0]),
    ):
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), f"in/{name}.nii.gz")
    assert prepare.main(["slices", "in", "out"]) == 1
    said = capsys.readouterr()
    assert "in/empty.nii.gz: the window" in said.err and "3 done, 0 were there, 1 faults" in said.out
    names = ["plane_0000", *(f"{kind}_{number:04}" for kind in ("series", "whole") for number in range(3))]
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.png")) == names
    plane, series = (np.asarray(Image.open(f"out/{name}.png"), float) for name in ("plane_0000", "whole_0000"))
    assert plane.shape == series.shape == (24, 20) and np.corrcoef(plane.ravel(), series.ravel())[0, 1] > 0.999
