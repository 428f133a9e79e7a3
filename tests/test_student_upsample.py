"""Low-resolution inputs as data sets ship them, enlarged when they are read: from `upsample: bicubic` to the scores."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import index, prepare
from pipeline.reporting.data import pair
from student import eval as evaluation
from student.data.cache import Enlarged, open_images
from student.data.dataset import PairDataset
from student.data.pairs import data_fingerprint, read_pairs
from student.data.resize import enlarge
from student.data.sampler import Draw


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Clean images of 48 x 36, and the same shrunk by 2, 3 and 4, in folders of those names."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for number in range(3):
        clean = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((48, 36))
        for name in ("gt", "2", "3", "4"):
            Path("data", name).mkdir(parents=True, exist_ok=True)
            clean.reduce(1 if name == "gt" else int(name)).save(f"data/{name}/{number}.png")
    return tmp_path


def indexed(scale: str, *args: str, **of: object) -> int:
    sets = [
        {"name": "sr", "domain": "natural", "task": "sr", **of}
        | {"splits": {split: {"gt": "gt", "lq": scale} for split in ("train", "val")}}
    ]
    paths = {"index": "index.parquet", "hash_cache": "cache.sqlite", "metrics": "metrics.json", "evaluation": "e"}
    Path("params.yaml").write_text(json.dumps({"paths": paths, "index": {"root": "data", "datasets": sets}}))
    return index.main(list(args))


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_inputs_are_what_prepare_enlarge_writes_whole_and_in_crops(project, scale, capsys):
    assert prepare.main(["enlarge", f"data/{scale}", "data/large", "--set", f"prepare.scale={scale}"]) == 0
    assert indexed("large") == 0
    stored = read_pairs("index.parquet", "train")
    assert indexed(str(scale), upsample="bicubic") == 0 and "6 pairs" in capsys.readouterr().out
    pairs = read_pairs("index.parquet", "train")
    assert list(pairs.upsample) == [scale] * 3
    for images in ("none", "memory", "memmap"):
        fly, file = (
            PairDataset(p, None, 16, seed=0, images=open_images(images, p, str(project / "c"))) for p in (pairs, stored)
        )
        for row in range(3):
            np.testing.assert_array_equal(fly.whole_image(row)[0], file.whole_image(row)[0])
            for epoch in range(8):
                for one, other in zip(fly.crop(Draw(row, epoch)), file.crop(Draw(row, epoch)), strict=True):
                    np.testing.assert_array_equal(one, other)
    larger = (
        PairDataset(pairs, None, 64, seed=0).crop(Draw(0, 0)),
        PairDataset(stored, None, 64, seed=0).crop(Draw(0, 0)),
    )
    np.testing.assert_array_equal(larger[0][0], larger[1][0])  # larger than the image: mirrored at its end
    assert data_fingerprint(pairs, None) != data_fingerprint(replace(pairs, upsample=np.array([None] * 3)), None)


def test_a_place_of_an_enlarged_image_is_that_place_also_in_floats():
    small = np.random.default_rng(0).random((3, 11, 7), dtype=np.float32)
    whole = enlarge(small.transpose(1, 2, 0), 3).transpose(2, 0, 1)
    for place in ((slice(0, 5), slice(16, 21)), (slice(13, 14), slice(3, 19)), (slice(30, 99), slice(None))):
        np.testing.assert_allclose(Enlarged(small, 3)[:, place[0], place[1]], whole[:, place[0], place[1]], atol=1e-6)


def test_scores_and_panels_are_of_the_enlarged_input(project):
    assert prepare.main(["enlarge", "data/4", "data/large"]) == 0
    found = {}
    for name, kind in (("large", {}), ("4", {"upsample": "bicubic"})):
        assert indexed(name, **kind) == 0 and evaluation.main(["--model", "input", "--out", name]) == 0
        rows = json.loads(Path(name, "results.json").read_text())["datasets"]["sr"]
        found[name] = rows["psnr_input"], Path(name, "panels/overview.png").read_bytes()
        shown = next(row for row in pq.read_table("index.parquet").to_pylist())
        assert pair(shown)[:4] == b"\x89PNG"  # the report's example
    assert found["large"] == found["4"]


def test_an_index_that_enlarges_nothing_has_no_column_more(project):
    assert indexed("gt") == 0
    before = Path("index.parquet").read_bytes()
    assert "upsample" not in pq.read_schema("index.parquet").names
    assert indexed("2", upsample="bicubic") == 0 and "upsample" in pq.read_schema("index.parquet").names
    assert indexed("gt") == 0 and Path("index.parquet").read_bytes() == before


def test_sizes_that_do_not_fit_are_refused_with_the_remedy(project, capsys):
    assert indexed("4") == 1
    assert "12x9, its gt has 48x36; give its data set upsample: bicubic" in capsys.readouterr().err
    picture = Image.open("data/gt/1.png")
    picture.resize((49, 38)).save("data/gt/1.png")
    assert indexed("4", upsample="bicubic") == 1
    message = capsys.readouterr().err
    assert "12x9, its gt has 49x38; crop it to multiples: python -m pipeline.prepare crop" in message
    assert prepare.main(["crop", "data/gt", "data/cropped"]) == 0
    Path("data/gt/1.png").write_bytes(Path("data/cropped/1.png").read_bytes())
    assert indexed("4", upsample="bicubic") == 0
    Image.open("data/gt/1.png").resize((50, 21)).save("data/4/1.png")
    assert indexed("4", upsample="bicubic") == 1 and "a whole number of times larger" in capsys.readouterr().err


def test_check_tells_several_factors_and_degradations_alone_are_refused(project, capsys):
    Path("data/4/1.png").write_bytes(Path("data/2/1.png").read_bytes())
    assert indexed("4", "--check", upsample="bicubic") == 0
    assert "data/4/1.png: x2, the first of its split x4" in " ".join(capsys.readouterr().out.split())
    params = json.loads(Path("params.yaml").read_text())
    for spec in params["index"]["datasets"][0]["splits"].values():
        spec.pop("lq")
        spec["degradation"] = {"kind": "identity"}
    Path("params.yaml").write_text(json.dumps(params))
    assert index.main([]) == 1 and "upsample enlarges stored lq" in capsys.readouterr().err
