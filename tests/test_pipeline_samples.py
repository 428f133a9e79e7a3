"""The sample data: enough of it, the same for everyone, and never the same thing in train and val."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import samples
from pipeline.sample_sources import MAP_REGIONS, MRI_SLICES, PHOTOGRAPHS
from pipeline.samples import TASKS, SamplesConfig, make_samples


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("samples")
    make_samples(SamplesConfig(), out)
    return out


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_enough_pairs_of_equal_size_in_every_task(tree):
    for task in TASKS:
        for split, least in (("train", 24), ("val", 6)):
            gts = sorted((tree / task / split / "gt").glob("*.png"))
            sizes = [Image.open(gt).size for gt in gts]
            assert len(gts) >= least and len(set(sizes)) > 3
            for gt, size in zip(gts, sizes, strict=True):
                lq = Image.open(tree / task / split / "lq" / gt.name)
                assert lq.size == size and lq.mode == Image.open(gt).mode
                assert not np.array_equal(np.asarray(lq), np.asarray(Image.open(gt)))


def test_everyone_gets_the_same_bytes_and_a_rerun_touches_nothing(tree, tmp_path):
    """Fewer pairs are a part of the same: the first of each domain's first task, degraded alike."""
    few, again = SamplesConfig(train_pairs=3, val_pairs=2), tmp_path / "again"
    make_samples(few, again)
    first = [name for name in contents(again) if name.startswith(("natural_sr", "medical_sr", "remote_sensing_sr"))]
    assert len(first) == 3 * 2 * 5
    assert all((again / name).read_bytes() == (tree / name).read_bytes() for name in first)
    before = contents(again)
    (again / "natural_sr_x4/train/gt/mine.png").write_bytes(b"added by hand")
    (again / "natural_sr_x4/train/gt/000.png").write_bytes(b"spoilt")
    stamps = {path: path.stat().st_mtime_ns for path in again.rglob("*.png")}
    make_samples(few, again)
    changed = {path.name for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert changed == {"000.png"}
    assert contents(again) == before | {"natural_sr_x4/train/gt/mine.png": b"added by hand"}


def test_train_and_val_share_no_source_and_no_region(tree):
    provenance = json.loads((tree / "sources.json").read_text())
    assert set(provenance) == {name for name in contents(tree) if "/gt/" in name}
    by_split = {
        split: {row["source"] for name, row in provenance.items() if f"/{split}/" in name} for split in ("train", "val")
    }
    assert not by_split["train"] & by_split["val"]
    assert not {path for _, path, _ in PHOTOGRAPHS["train"]} & {path for _, path, _ in PHOTOGRAPHS["val"]}
    assert min(MRI_SLICES["val"]) - max(MRI_SLICES["train"]) >= 15, "in millimetres"
    for _, train in MAP_REGIONS["train"]:
        for _, val in MAP_REGIONS["val"]:
            assert max(val[0] - train[2], train[0] - val[2], val[1] - train[3], train[1] - val[3]) >= 160


def test_no_clean_image_is_nearly_another_of_the_other_split(tree):
    def small(split: str) -> list[np.ndarray]:
        files = sorted(tree.glob(f"*/{split}/gt/*.png"))
        pictures = [np.asarray(Image.open(f).convert("RGB").resize((16, 16)), float).ravel() for f in files]
        return np.array([(p - p.mean()) / p.std() for p in pictures]) / np.sqrt(16 * 16 * 3)

    assert (small("train") @ small("val").T).max() < 0.98


def test_the_summary_names_counts_and_sources(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("samples: {train_pairs: 2, val_pairs: 1}")
    assert samples.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(TASKS) + 1
    assert all(f"  {task}: 2 train pairs from" in line for task, line in zip(TASKS, lines, strict=False))
    assert samples.main(["--set", "samples.val_pairs=900"]) == 1
    assert "samples.val_pairs = 900: natural has only" in capsys.readouterr().err
