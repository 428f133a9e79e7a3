"""The report shows what was evaluated, and is made where the release is out of reach or nothing is installed."""

import io
from importlib import metadata
from pathlib import Path

import numpy as np
import toy_training
from PIL import Image

from pipeline import report
from pipeline.reporting.data import pair
from student.data.dataset import PairDataset
from student.data.pairs import read_pairs


def test_an_example_s_noise_is_the_noise_that_is_evaluated(tmp_path):
    toy_training.make_data(tmp_path)
    pairs = read_pairs(tmp_path / "index.parquet", "val")
    row = next(row for row in range(len(pairs)) if pairs.degradation[row])
    wanted = PairDataset(pairs, None, 1, seed=0).whole_image(row)[0].transpose(1, 2, 0)
    shown = pair({key: getattr(pairs, key)[row] for key in ("gt_path", "lq_path", "degradation", "range", "upsample")})
    height, width = wanted.shape[:2]
    left = np.asarray(Image.open(io.BytesIO(shown)))[:height, :width] / 255
    assert np.abs(left - wanted.clip(0, 1)).max() <= 0.5 / 255 + 1e-6


def test_a_release_out_of_reach_and_a_checkout_leave_the_rest(tmp_path, monkeypatch, capsys):
    def version(name, of=metadata.version):
        if name == "teachonce":
            raise metadata.PackageNotFoundError(name)
        return of(name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metadata, "version", version)
    Path("params.yaml").write_text("paths: {release: 'nowhere://bucket/release'}\n")
    report.main([])
    assert "not shown: no usable caption release: nowhere://bucket/release" in capsys.readouterr().out
    assert "teachonce not installed" in Path("artifacts/report/index.html").read_text(encoding="utf-8")
