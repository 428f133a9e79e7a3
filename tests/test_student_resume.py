"""Exact resume: however a run is interrupted, it ends with the numbers of an uninterrupted one, bit for bit."""

import functools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_training as toy

from student.data import dataset
from student.training import stopping
from student.training.checkpoints import CheckpointError, Checkpoints
from student.training.log import RunLog
from student.training.setup import lock

EMA = {"ema_decay": 0.9, "max_steps": 12, "save_every": 3, "val_every": 5}


@pytest.fixture(scope="module")
def whole_run(toy_data, tmp_path_factory):
    """An uninterrupted run in a process of its own; dropout and selection noise are on."""
    folder = toy.beside(toy_data, tmp_path_factory.mktemp("whole"))
    toy.finish(toy.start(folder, **EMA))
    return folder


def assert_equal_runs(folder: Path, whole_run: Path) -> None:
    assert toy.losses(folder / "student") == toy.losses(whole_run / "student")
    assert toy.same(toy.weights(folder / "student"), toy.weights(whole_run / "student"))
    last = [toy.newest(path / "student") for path in (folder, whole_run)]
    assert last[0].name == last[1].name == "step-00000012"
    for name in ("model.safetensors", "ema-00000.safetensors"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes()


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_a_run_killed_at_random_points_ends_as_an_uninterrupted_one(whole_run, room, seed):
    choose, out = random.Random(seed), room / "student"
    for _ in range(10 if seed else 2):
        (process,) = toy.start(room, **EMA)
        logged = len(toy.log_rows(out)) if (out / "log.jsonl").exists() else 0
        toy.wait_for_rows(out, logged + choose.randint(0, 5), process)
        time.sleep(choose.uniform(0, 0.1))  # in the middle of a step, a checkpoint, a validation
        process.kill()
        process.join()
    toy.finish(toy.start(room, **EMA))
    assert_equal_runs(room, whole_run)


def when_logged(step: int, what: Callable[[RunLog], None]) -> None:
    """Call `what` before the losses of this step are logged, however fast the run is."""
    write = RunLog.write

    def logged(self, row: dict) -> None:
        if row["step"] == step and "loss" in row:
            what(self)
        write(self, row)

    RunLog.write = logged


def signal_at_row_4(number: int) -> None:
    when_logged(4, lambda _log: os.kill(os.getpid(), number))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_a_checkpoint_and_exits_cleanly(whole_run, room, number):
    signalled = functools.partial(signal_at_row_4, number)
    toy.finish(toy.start(room, before=signalled, **EMA))
    assert 4 <= int(toy.newest(room / "student").name[5:]) < 12
    assert f"stopped by signal {number.name}" in (room / "params-0.txt").read_text()
    assert (room / "student" / "model.safetensors").exists()
    toy.finish(toy.start(room, **EMA))
    assert_equal_runs(room, whole_run)


def test_ending_early_by_step_or_time_changes_no_number(whole_run, room):
    for limit in ({"stop_at_step": 2}, {"max_minutes": 1e-6}, {"stop_at_step": 7, "save_every": 100, "val_every": 5}):
        toy.run_here(room, **(EMA | limit))
    assert len(toy.log_rows(room / "student")) == 7
    toy.finish(toy.start(room, **EMA))
    assert_equal_runs(room, whole_run)


def test_a_finished_run_ends_at_once_and_is_published_again_if_its_weights_are_gone(whole_run):
    out, weights = whole_run / "student", toy.weights(whole_run / "student")
    changed = (out / "log.jsonl").stat().st_mtime_ns
    toy.run_here(whole_run, **EMA)
    assert (out / "log.jsonl").stat().st_mtime_ns == changed
    (out / "model.safetensors").unlink()  # as `dvc repro --force` does with a stage's outputs
    toy.run_here(whole_run, **EMA)
    assert toy.same(toy.weights(out), weights)


def test_runs_of_other_parameters_stay_beside_each_other_and_each_is_taken_up_again(room, capsys):
    settings = {"max_steps": 4, "val_every": 2}
    out = toy.run_here(room, **settings)
    first, curve, (kept,) = toy.weights(out), toy.losses(out), (out / "checkpoints").iterdir()
    toy.run_here(room, **settings, lr=5e-4, stop_at_step=3)
    assert f"train.lr 0.001 → 0.0005); it is kept in {kept}" in capsys.readouterr().out
    assert not toy.same(toy.weights(out), first) and len(toy.losses(out)) == 3
    toy.run_here(room, **settings)
    assert "step 4 of 4" in capsys.readouterr().out
    assert toy.same(toy.weights(out), first) and toy.losses(out) == curve
    toy.run_here(room, **settings)
    assert "already at step 4" in capsys.readouterr().out
    toy.run_here(room, **settings, lr=5e-4)
    assert [row["step"] for row in toy.losses(out)] == [1, 2, 3, 4] and len(list((out / "panels").iterdir())) == 2
    assert len((out / "curves" / "train.tsv").read_text().splitlines()) == 5


@pytest.mark.parametrize("name", ["optimizer.bin", "model.safetensors", "ema-00000.safetensors"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(room, name):
    """One bit that flipped in a weight or a moment gives numbers as good as any other."""
    out = toy.run_here(room, max_steps=4, stop_at_step=2, val_every=0, ema_decay=0.9)
    file = toy.newest(out) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=f"step-00000002/{name}: damaged or gone .*; delete .*step-00000002 to resume"
    ):
        toy.run_here(room, max_steps=4, val_every=0, ema_decay=0.9)


def data_that_stops_coming() -> None:
    """After two steps, as from workers that a full /dev/shm has stopped."""
    load, given = dataset.PairDataset.__getitems__, []
    stopping.PATIENCE = 2
    multiprocessing.set_start_method("fork", force=True)  # so that the worker has this too

    def batch(self, draws):
        if len(given) == 2:
            time.sleep(60)
        given.append(draws)
        return load(self, draws)

    dataset.PairDataset.__getitems__ = batch


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_wait_for_data_ends_and_names_the_remedy(room, by_signal):
    settings = {"num_workers": 1, "data_timeout": 600 if by_signal else 3, "val_every": 0}
    [process] = toy.start(room, before=data_that_stops_coming, **settings)
    if by_signal:
        toy.wait_for_rows(room / "student", 2, process)
        process.terminate()
    toy.finish([process], code=1)
    said = (room / "params-0.txt").read_text()
    assert "--shm-size" in said and "train.num_workers" in said and "Traceback" not in said
    assert ("signal SIGTERM" if by_signal else "train.data_timeout)") in said
    assert toy.newest(room / "student").name == "step-00000002"


def log_to_a_full_disk() -> None:
    when_logged(3, lambda log: setattr(log, "file", Path("/dev/full")))


def test_a_full_disk_is_one_line(room):
    toy.finish(toy.start(room, before=log_to_a_full_disk, save_every=2), code=1)
    said = (room / "params-0.txt").read_text()
    assert "the disk is full; free some space and start again" in said and "Traceback" not in said
    assert toy.newest(room / "student").name == "step-00000002"


def test_only_one_process_may_train_into_a_directory(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(CheckpointError, match=f"process {os.getpid()} is training here"):
        lock(tmp_path)
    held.close()
    lock(tmp_path).close()


def save(checkpoints: Checkpoints, step: int, score: float | None, write=lambda folder: None) -> None:
    process = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    checkpoints.save(step, {"val_psnr": score}, [write], 2, process)


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    for step, score in enumerate([20.0, 25.0, None, 24.0, 23.0], start=1):
        save(checkpoints, step, score)
    assert [int(path.name[5:]) for path in checkpoints.all()] == [2, 4, 5]


def test_half_written_checkpoints_are_never_seen_and_swept_away(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    save(checkpoints, 1, None)

    def dies(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 2, None, dies)
    assert checkpoints.latest().name == "step-00000001"
    assert checkpoints.open() is None
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]
