"""The loop: what it logs and writes, and what it survives."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_training as toy

from shards import open_release
from student.data.dataset import PairDataset
from student.data.pairs import read_pairs
from student.model import Student
from student.network.config import ModelConfig
from student.params import Paths
from student.train import lr_at
from student.training.config import TrainConfig
from student.training.losses import TERMS
from student.training.run import Run
from student.training.setup import Job
from student.training.stopping import TrainingStopped


def test_training_restores_better_than_doing_nothing(room):
    out = toy.run_here(room, max_steps=40, lr=2e-3, val_every=40, val_images=0, log_every=40)
    (row,) = toy.log_rows(out, "val")
    assert np.mean([score["psnr_gain"] for score in row["val"].values()]) > 0.5
    student, release = Student.from_pretrained(str(out)), open_release(room / "release")
    assert student(torch.rand(1, 3, 20, 24)).shape == (1, 3, 20, 24)
    assert student.embedding_fingerprint == release.manifest["embedding_fingerprint"]


def test_the_log_holds_raw_and_weighted_losses_and_trackers_and_dvc_plots_show_them(room):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    weights = {"fft": 0.0, "align": 0.5}
    out = toy.run_here(room, max_steps=4, val_every=2, losses=weights, trackers=["tensorboard"])
    rows = toy.log_rows(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["loss_fft"] is None and "fft" not in row["weighted"]
        assert row["weighted"]["align"] == pytest.approx(0.5 * row["loss_align"])
        assert row["loss"] == pytest.approx(sum(row["weighted"].values()), rel=1e-5)
        assert {"lr", "grad_norm", "images_per_second", "data_wait_fraction"} <= row.keys()
    (_, usage) = toy.log_rows(out, "usage")
    assert set(usage["usage"]["task"]) == {"denoising", "deraining"}
    assert all(sum(use) == pytest.approx(1, abs=1e-4) for use in usage["usage"]["domain"].values())
    assert json.loads((out / "curves/usage.json").read_text()) == usage["usage"]
    train = (out / "curves" / "train.tsv").read_text().splitlines()
    assert train[0].split("\t")[:3] == ["step", "loss", "loss_pixel"] and len(train) == 5
    curves = {file.stem: file.read_text().splitlines() for file in (out / "curves/val").iterdir()}
    assert curves.keys() == set(toy.DATASETS) and {len(lines) for lines in curves.values()} == {1 + 2}
    newest = json.loads((out / "metrics.json").read_text())
    assert newest["step"] == 4 and set(newest["val"]) == set(toy.DATASETS)
    assert len(list((out / "panels").glob("*/step-00000004-*.png"))) == 3
    (events,) = (out / "trackers").glob("*/train/events*")
    read = EventAccumulator(str(events)).Reload()
    assert [event.value for event in read.Scalars("loss/total")] == pytest.approx([row["loss"] for row in rows])
    tags = read.Tags()["scalars"] + read.Tags()["images"]
    assert {"val/natural_denoising/psnr", "weighted/align", "loss/pixel", "run/lr", "run/grad_norm"} <= set(tags)
    assert {tag.split("/")[0] for tag in tags} == {"loss", "weighted", "run", "val", "panels"}, "a group a kind"


OFTEN = {"val_every": 0, "log_every": 2, "save_every": 1, "cache_images": "none"}


@pytest.mark.parametrize("change", [{"num_workers": 2}, {"cache_images": "memmap"}, OFTEN])
def test_how_a_run_is_carried_out_may_change_on_the_way_and_changes_no_number(room, change):
    plain, changed = (toy.beside(room, room / name) for name in ("plain", "changed"))
    toy.run_here(changed, max_steps=4, stop_at_step=1)
    out, expected = toy.run_here(changed, max_steps=4, **change), toy.run_here(plain, max_steps=4)
    rows = [[row for row in toy.losses(each) if row["step"] in (1, 2, 4)] for each in (out, expected)]
    assert rows[0] == rows[1] and len(rows[0]) == 3
    assert toy.same(toy.weights(out), toy.weights(expected))


def test_a_run_goes_on_in_another_memory_format(room):
    """Adam's moments follow the weights: fused on a GPU it takes them in no other layout."""
    toy.run_here(room, max_steps=4, stop_at_step=2, val_every=0, channels_last=True)
    out = toy.run_here(room, max_steps=4, val_every=0, channels_last=False)
    assert len(toy.log_rows(out)) == 4
    state = torch.load(toy.newest(out) / "optimizer.bin", weights_only=True)["state"]
    moments = [values[name] for values in state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert any(moment.ndim == 4 for moment in moments) and all(moment.is_contiguous() for moment in moments)


@pytest.mark.parametrize("scale, good", [(65536.0, True), (1.0, True), (0.5, False), (None, False)])
def test_gradients_that_no_loss_scale_makes_finite_are_a_bad_step(scale, good):
    """fp16 tries scales until one does not overflow; below 1 it is not the scale."""
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    run = SimpleNamespace(
        accelerator=SimpleNamespace(scaler=scaler), config=TrainConfig(max_bad_steps=3), bad_steps=0, bad_in_a_row=0
    )
    Run.is_good(run, 1, {"loss": 1.0}, float("nan"), [])
    assert (run.bad_in_a_row == 0) == good


def test_two_micro_batches_equal_one_batch_where_losses_are_means_over_rows(room):
    losses = {"balance": 0.0, "contrastive": 0.0}
    settings = {"max_steps": 5, "val_every": 0, "lr": 4e-4, "losses": losses}
    one, two = (toy.losses(toy.run_here(room, toy.STILL, **settings, grad_accumulation=n)) for n in (1, 2))
    toy.assert_losses_near(one, two, 1e-5, set(TERMS) - losses.keys())


def test_the_settings_of_other_code_are_their_settings(room):
    """Every image alike, AdamW, a rate that is halved: the numbers of the run follow each."""
    steps = TrainConfig(max_steps=10, lr=8e-4, halve_lr_at=[4, 8])
    assert [lr_at(step, steps) for step in (0, 3, 4, 7, 8, 9)] == [8e-4, 8e-4, 4e-4, 4e-4, 2e-4, 2e-4]
    adam, adamw = (toy.beside(room, room / name) for name in ("adam", "adamw"))
    toy.run_here(adam, max_steps=2)
    toy.run_here(adamw, max_steps=2, optimizer="adamw", weight_decay=0.5)
    ours, decayed = toy.weights(adam / "student"), toy.weights(adamw / "student")
    assert not toy.same(ours, decayed)
    config = {
        "max_steps": 400,
        "batch_size": 8,
        "sampling": "concatenated",
        "dataset_weights": {"medical_denoising": 3},
    }
    pairs = read_pairs(room / "index.parquet", "train")
    job = Job(Paths(), TrainConfig(**config), ModelConfig(), pairs, pairs, None)
    drawn = Counter(pairs.dataset[draw.row] for batch in job.batches(0, 0, 1) for draw in batch)
    listed = {
        "natural_denoising": 7,
        "natural_deraining": 5,
        "medical_denoising": 3 * 4,
    }  # images
    shares = {name: drawn[name] / drawn.total() for name in listed}
    assert shares == pytest.approx({name: count / 24 for name, count in listed.items()}, abs=0.002)


def test_the_schedule_warms_up_and_ends_near_its_smallest_rate():
    config = TrainConfig(max_steps=100, warmup_steps=10)
    rates = [lr_at(step, config) for step in range(100)]
    assert rates[0] == pytest.approx(4e-5) and rates[9] == rates[10] == 4e-4
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx((4e-4 + 1e-6) / 2) and 1e-6 < rates[-1] < 2e-6


def test_the_published_weights_are_the_moving_average(room):
    settings = {"val_every": 0, "save_every": 1, "keep_last": 9}
    out = toy.run_here(room, max_steps=4, ema_decay=0.5, **settings)
    steps = [toy.weights(path) for path in sorted((out / "checkpoints").glob("*/step-*"))]
    name = "backbone.output.weight"
    average = torch.zeros_like(steps[0][name])  # this convolution starts at zero
    for step, weights in enumerate(steps):
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights[name]
    torch.testing.assert_close(toy.weights(out)[name], average)
    assert not torch.equal(toy.weights(out)[name], steps[-1][name])


def poison(monkeypatch, file: str) -> None:
    """The degradation of one clean image gives nan from now on."""
    crop = PairDataset.crop

    def poisoned(self, draw):
        lq, gt = crop(self, draw)
        return (lq * np.nan, gt) if self.pairs.gt_path[draw.row].endswith(file) else (lq, gt)

    monkeypatch.setattr(PairDataset, "crop", poisoned)


def test_a_step_that_is_not_finite_is_skipped_and_counted(room, monkeypatch):
    poison(monkeypatch, "natural_denoising/train/gt/0.png")
    out = toy.run_here(room, max_steps=8, val_every=0)
    rows = toy.log_rows(out)
    bad = [row["step"] for row in rows if not np.isfinite(row["loss"])]
    assert 1 <= len(bad) < 8 and rows[-1]["bad_steps"] == len(bad)
    assert all(tensor.isfinite().all() for tensor in toy.weights(out).values())


def test_too_many_bad_steps_stop_with_step_term_and_file_and_leave_the_last_checkpoint(room, monkeypatch):
    newest = toy.newest(toy.run_here(room, max_steps=8, stop_at_step=4, val_every=0))
    before = {path.name: path.read_bytes() for path in newest.iterdir()}
    poison(monkeypatch, ".png")
    with pytest.raises(TrainingStopped, match=r"^step 6: loss terms loss, pixel, fft.*train/.*\.png.*lower train.lr$"):
        toy.run_here(room, max_steps=8, val_every=0, max_bad_steps=2)
    assert {path.name: path.read_bytes() for path in newest.iterdir()} == before


def test_only_the_samples_at_fault_are_named(room, monkeypatch):
    poison(monkeypatch, "natural_deraining/train/gt/2.png")
    with pytest.raises(TrainingStopped, match=r"images: natural_deraining: \S*/2\.png; nothing was updated"):
        toy.run_here(room, max_steps=20, val_every=0, max_bad_steps=1)
