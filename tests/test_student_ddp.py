"""Several processes: two gloo processes at half the batch equal one, and act as one."""

import os
import signal

import pytest
import torch
import toy_training as toy

from student.training.losses import gather_rows, loss_balance, loss_contrastive

# Equal to 1e-5 needs the published learning rate: at a higher one rounding soon flips a choice among the top-k prompts.
RUN = {"max_steps": 20, "lr": 4e-4, "val_every": 10, "seed": 3}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    toy.make_data(folder)
    toy.finish(toy.start(folder, toy.STILL, **RUN))
    return folder


def assert_equal_to(rows: list[dict], expected: list[dict]) -> None:
    assert len(rows) == 20
    toy.assert_losses_near(rows[:5], expected[:5], 2e-6)
    toy.assert_losses_near(rows, expected, 1e-3)  # rounding grows, and a prompt chosen otherwise once makes a jump


def test_two_processes_at_half_the_batch_equal_one(alone, tmp_path):
    toy.finish(toy.start(toy.beside(alone, tmp_path), toy.STILL, processes=2, **RUN))
    assert_equal_to(toy.losses(tmp_path / "student"), toy.losses(alone / "student"))
    scores = [toy.log_rows(folder / "student", "val")[-1]["val"] for folder in (tmp_path, alone)]
    assert scores[0].keys() == scores[1].keys()
    for name, score in scores[0].items():
        assert score["psnr"] == pytest.approx(scores[1][name]["psnr"], abs=1e-2)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_one_alone_goes_on(alone, tmp_path):
    processes = toy.start(toy.beside(alone, tmp_path), toy.STILL, processes=2, **RUN)
    toy.wait_for_rows(tmp_path / "student", 5, processes[0])
    os.kill(processes[1].pid, signal.SIGTERM)
    toy.finish(processes)
    assert 5 <= int(toy.newest(tmp_path / "student").name[5:]) < 20
    toy.finish(toy.start(tmp_path, toy.STILL, **RUN))
    assert_equal_to(toy.losses(tmp_path / "student"), toy.losses(alone / "student"))


@pytest.mark.parametrize(
    "loss", [loss_balance, lambda rows: loss_contrastive(rows, torch.tensor([0, 1, 0, 1, 2, 2]), 0.1)]
)
def test_the_mean_of_the_processes_gradients_is_the_whole_batch_s(monkeypatch, loss):
    """What DDP relies on, without processes: each "process" sees the others' rows as constants."""
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    whole = rows.clone().requires_grad_()
    expected = loss(whole)
    expected.backward()
    mean = torch.zeros_like(rows)
    for rank in range(3):
        mine = rows[2 * rank : 2 * rank + 2].clone().requires_grad_()
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        share = loss(gather_rows(mine, lambda _: rows))
        assert share.item() == expected.item()
        share.backward()
        mean[2 * rank : 2 * rank + 2] = mine.grad / 3
    torch.testing.assert_close(mean, whole.grad)
