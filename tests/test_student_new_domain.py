"""A domain is added to a trained student: only its images are captioned, weights are carried on, old tasks are kept."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import toy_training as toy
from PIL import Image
from processes import printed
from skimage import data as photographs

from shards import open_release
from student.training.run import Run
from student.training.setup import build_student, open_job

NEW = {"remote_denoising": ("remote_sensing", "denoising", 6)}


@pytest.fixture
def grown(tmp_path):
    """A trained toy student, copied to `before`; then a data set of a new domain joins index and release."""
    toy.make_data(tmp_path)
    toy.run_here(tmp_path, max_steps=8, lr=2e-3)
    shutil.copytree(tmp_path / "student", tmp_path / "before")
    toy.make_data(tmp_path, toy.DATASETS | NEW)
    return tmp_path


def test_the_new_run_starts_from_the_old_weights_with_a_fresh_optimiser_and_schedule(grown, monkeypatch, capsys):
    settings = {"init_from": str(grown / "before"), "max_steps": 8, "lr": 5e-4}
    old, job = toy.weights(grown / "before"), open_job(toy.params(grown, **settings))
    assert toy.same(dict(build_student(job).state_dict()), old)
    started = []
    build = Run.build
    monkeypatch.setattr(
        Run, "build", lambda run: (build(run), started.append((run.start, dict(run.weights.optimizer.state))))[0]
    )
    out = toy.run_here(grown, **settings)
    assert started == [(0, {})]
    assert [row["step"] for row in toy.log_rows(out)] == list(range(1, 9))
    assert toy.log_rows(out)[0]["lr"] == 5e-4
    assert toy.weights(out).keys() == old.keys()
    assert {name: tensor.shape for name, tensor in toy.weights(out).items()} == {n: t.shape for n, t in old.items()}
    assert "it is kept in" in capsys.readouterr().out
    assert len(list((out / "checkpoints").iterdir())) == 2


def test_the_new_domain_is_trained_validated_and_logged_beside_the_old_ones(grown):
    out = toy.run_here(grown, init_from=str(grown / "before"), max_steps=4, val_every=4)
    (val,), (usage,) = (toy.log_rows(out, key) for key in ("val", "usage"))
    assert set(val["val"]) == {*toy.DATASETS, *NEW}
    assert set(usage["usage"]["domain"]) == {"medical", "natural", "remote_sensing"}
    assert len(usage["usage"]["domain"]["remote_sensing"]) == toy.MODEL["domain_pool_size"]  # the pool did not grow


def test_a_restart_of_the_new_run_goes_on_and_does_not_begin_from_the_old_student_again(grown):
    settings = {"init_from": str(grown / "before"), "max_steps": 8}
    toy.run_here(grown, **settings, stop_at_step=5)
    middle = toy.weights(max((grown / "student" / "checkpoints").glob("*/step-00000005")))
    assert not toy.same(middle, toy.weights(grown / "before"))
    out = toy.run_here(grown, **settings)
    assert [row["step"] for row in toy.log_rows(out)] == list(range(1, 9))


def dataset(name: str, domain: str, degradation: dict | None = None) -> dict:
    splits = {split: {"gt": f"{name}/{split}/gt"} for split in ("train", "val")}
    for split, folders in splits.items():
        folders |= {"degradation": degradation} if degradation else {"lq": f"{name}/{split}/lq"}
    return {"name": name, "domain": domain, "task": name, "splits": splits}


PARAMS = {
    "samples": {"train_pairs": 8, "val_pairs": 3},
    "index": {
        "root": "artifacts/samples",
        "datasets": [dataset("natural_deraining", "natural"), dataset("medical_denoising", "medical")],
    },
    "caption": {"model": str(toy.ROOT / "teacher" / "mini")},
    "model": toy.MODEL,
    "train": {
        "max_steps": 200, "batch_size": 6, "patch_size": 48, "lr": 2e-3, "ema_decay": 0.99, "mixed_precision": "no",
        "num_workers": 0, "cache_images": "memory", "val_every": 200, "val_images": 0, "log_every": 50, "trackers": [],
    },
}  # fmt: skip


def run(root: Path, params: dict, *command: str) -> str:
    (root / "params.yaml").write_text(json.dumps(params))
    return printed(root, *command)


def reproduce(root: Path, params: dict) -> tuple[str, dict[str, float]]:
    """What `dvc repro train` runs; returns what the caption stage said, and each data set's gain in validation."""
    run(root, params, "-m", "pipeline.index")
    said = run(root, params, "-m", "pipeline.caption")
    run(root, params, "-m", "pipeline.embed")
    run(root, params, str(toy.ROOT / "student" / "train.py"))
    scores = toy.log_rows(root / "artifacts" / "student", "val")[-1]["val"]
    return said, {name: score["psnr_gain"] for name, score in scores.items()}


def save_histology(folder: Path) -> None:
    """Six crops for training and three for validation of the stained tissue that scikit-image carries."""
    tissue = Image.fromarray(photographs.immunohistochemistry())
    for row, column in np.ndindex(3, 3):
        file = folder / ("val" if row == 2 else "train") / "gt" / f"{row}{column}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        tissue.crop((column * 160, row * 160, column * 160 + 96, row * 160 + 96)).save(file)


@pytest.mark.slow
def test_a_real_domain_joins_real_ones(tmp_path):
    """The real stages on real sample images with the mini teacher, and a student of 50 k parameters."""
    params, artifacts = copy.deepcopy(PARAMS), tmp_path / "artifacts"
    run(tmp_path, params, "-m", "pipeline.samples")
    _, before = reproduce(tmp_path, params)
    shutil.copytree(artifacts / "student", artifacts / "student-before")
    hashes = sorted(set(parquet.read_table(artifacts / "index.parquet")["gt_sha256"].to_pylist()))
    old_vectors = np.array(open_release(artifacts / "caption_shards").lookup(hashes)[0])

    save_histology(artifacts / "samples" / "histology")
    params["index"]["datasets"].append(dataset("histology", "histology", {"kind": "gaussian_noise", "sigma": 25}))
    params["train"] |= {"init_from": "artifacts/student-before", "max_steps": 100, "lr": 5e-4, "warmup_steps": 10}
    params["train"] |= {"val_every": 100}
    said, after = reproduce(tmp_path, params)
    assert f"9 new of {len(hashes) + 9} images × 5 perspectives, {len(hashes)} found in the store" in said
    vectors, found = open_release(artifacts / "caption_shards").lookup(hashes)
    assert found.all() and np.array_equal(vectors, old_vectors)
    assert after["histology"] > 1, after
    for name, gain in before.items():
        assert gain > 1 and after[name] > gain - 0.5, (name, before, after)
    assert run(tmp_path, params, "-m", "pipeline.caption").count("no model loaded") == 1
