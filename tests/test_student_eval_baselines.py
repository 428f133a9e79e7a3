"""Simple methods beside the student, on pictures that a test set may hold: half black, an empty slice."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy_training

from student import eval as evaluation
from student.data.pairs import read_pairs
from student.evaluation.baselines import BASELINES
from student.evaluation.metrics import IDENTICAL_DB


def run(folder: Path, out: Path, **eval_section) -> int:
    """Measure the inputs of toy data in `folder`."""
    file = folder / "params.yaml"
    file.write_text(json.dumps({"paths": {"index": str(folder / "index.parquet")}, "eval": eval_section}))
    return evaluation.main(["--params", str(file), "--model", "input", "--out", str(out), "--device", "cpu"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("method", ["tv", "nlm"])
def test_a_picture_without_any_noise_is_kept(method):
    black, halves, one_channel = (np.zeros((3, 48, 48), np.float32) for _ in range(3))
    halves[:, :, :24] = 1
    one_channel[0] = np.linspace(0, 1, 48)
    for image in (black, halves, one_channel):
        assert np.abs(BASELINES[method](image, image, None) - image).max() < 0.02


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_test_set_with_an_empty_slice_is_evaluated(tmp_path):
    toy_training.make_data(tmp_path)
    pairs = read_pairs(tmp_path / "index.parquet", "val")
    row = next(row for row in range(len(pairs)) if pairs.lq_path[row])
    for path in (pairs.gt_path[row], pairs.lq_path[row]):
        toy_training.save_png(Path(path), np.zeros((24, 20, 3)))
    assert run(tmp_path, tmp_path / "scores", baselines=["tv", "nlm"]) == 0
    values = json.loads((tmp_path / "scores/results.json").read_text())["datasets"][pairs.dataset[row]]
    assert IDENTICAL_DB / 2 < values["psnr_nlm"] <= IDENTICAL_DB


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    toy_training.make_data(tmp_path)
    (tmp_path / "file").write_text("")
    assert run(tmp_path, tmp_path / "file/scores") == 1
    assert "file/scores" in capsys.readouterr().err
