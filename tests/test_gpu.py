"""What a GPU asks of the training code, tested without one."""

import json
import sys
from unittest.mock import MagicMock

import pytest
import torch
from processes import ROOT, printed
from tape import Tape
from toy_training import losses, make_data, run_here, same, weights

from student.network import gpu_blocks
from student.params import ParamsError
from student.training import cuda_graph


@pytest.fixture
def tapes(monkeypatch):
    """A CPU on which `train.cuda_graph` records tapes."""
    monkeypatch.setattr(cuda_graph, "check", lambda accelerator: None)
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", lambda tape, **_options: tape)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_get_capturable_supported_devices", lambda: ["cpu"])


@pytest.mark.parametrize("devices", [set(), {"cpu"}], ids=["blocks for CPUs", "for GPUs"])
def test_recorded_steps_train_the_same_student(devices, tapes, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_blocks, "DEVICES", devices)
    folders = tmp_path / "eager", tmp_path / "recorded"
    for folder, eager_calls in zip(folders, (10**9, 3), strict=True):
        make_data(folder)
        monkeypatch.setattr(cuda_graph, "EAGER_CALLS", eager_calls)
        run_here(folder, cuda_graph=True, ema_decay=0.9, warmup_steps=3)
    assert losses(folders[0] / "student") == losses(folders[1] / "student")
    assert same(*(weights(folder / "student") for folder in folders))


def test_a_graph_is_refused_where_it_cannot_be(tmp_path):
    make_data(tmp_path)
    with pytest.raises(ParamsError, match=r"train.cuda_graph: this run is on cpu"):
        run_here(tmp_path, cuda_graph=True)
    with pytest.raises(ParamsError, match="cuda_graph needs grad_accumulation 1"):
        run_here(tmp_path, cuda_graph=True, grad_accumulation=2)


def measure(folder, *arguments):
    """What benchmarks/gpu.py leaves and prints."""
    command = [str(ROOT / "benchmarks/gpu.py"), "--toy", "--device", "cpu", "--out", str(folder)]
    said = printed(folder, *command, *arguments)
    return json.loads((folder / "gpu.json").read_text()), said


def test_the_gpu_command_runs_every_part_at_toy_size(tmp_path):
    facts, _ = measure(tmp_path)
    assert set(facts["ended"].values()) == {"done"}
    rows = facts["rows"]
    assert {row["right"] for row in rows["correctness"]} == {"yes"}
    assert {row["method"] for row in rows["student"] if "step" in row} == {
        "authors'",
        "ours",
        "ours, blocks as on a CPU",
    }
    authors, plain, ours = (row["kernels"] for row in rows["student"] if "counted" in row)
    assert ours < plain < authors
    weights = {row["weights"] for row in rows["teacher"] if "weights" in row}
    assert weights == {"nf4", "nf4-dequantized", "int8", "none"}
    assert {row["decoding"] for row in rows["teacher"] if "decoding" in row} >= {"rows", "slots"}
    assert all(row["images_per_second"] > 0 for row in rows["trainer"] + rows["processes"])
    assert (tmp_path / "gpu.md").read_text().count("| ---") >= 8


def test_what_a_part_measured_before_its_time_was_up_is_kept(tmp_path):
    (tmp_path / "correctness.jsonl").write_text('{"stale": 1}\n')
    facts, printed = measure(tmp_path, "--parts", "correctness", "--minutes", "0.1")
    assert facts["ended"] == {"correctness": "cut off"} and "correctness (cut off)" in printed
    assert not any("stale" in row or "trained" in row for row in facts["rows"]["correctness"])
