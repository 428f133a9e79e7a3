"""student.eval on real files: numbers equal to the metrics, resumable, the same over two processes, panels drawn."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_training
from PIL import Image
from processes import free_port

from student import eval as evaluation
from student.data.dataset import PairDataset
from student.data.pairs import read_pairs
from student.evaluation import run as evaluation_run
from student.evaluation.extra_metrics import extra_metric
from student.evaluation.metrics import IDENTICAL_DB, psnr, ssim
from student.model import Student
from student.network.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
KEYS = {"psnr", "ssim", "psnr_input", "ssim_input", "psnr_gain", "n"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with images, index, a student whose weights are random but not the identity, and params.yaml."""
    folder = tmp_path_factory.mktemp("project")
    toy_training.make_data(folder)
    torch.manual_seed(0)
    student = Student(ModelConfig(**{**toy_training.MODEL, "prompt_dim": 32, "zero_init_output": False}))
    student.save_pretrained(folder / "student")
    return folder


def write_params(project: Path, out: Path, **eval_section) -> Path:
    paths = {"index": project / "index.parquet", "student": project / "student"}
    paths |= {"metrics": out / "metrics.json", "evaluation": out / "evaluation"}
    file = out / "params.yaml"
    file.write_text(json.dumps({"paths": {k: str(v) for k, v in paths.items()}, "eval": eval_section}))
    return file


def run(project: Path, out: Path, *arguments: str, **eval_section) -> int:
    return evaluation.main(["--params", str(write_params(project, out, **eval_section)), "--device", "cpu", *arguments])


def test_numbers_equal_the_metrics_of_the_student(project, tmp_path, capsys):
    assert run(project, tmp_path) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"variant", "tasks", "overall"} and metrics["variant"] == "basicsr"
    assert set(metrics["tasks"]) == {"denoising", "deraining"}
    results = json.loads((tmp_path / "evaluation/results.json").read_text())
    assert set(results["datasets"]) == set(toy_training.DATASETS)
    assert all(set(values) == KEYS for values in [*results["tasks"].values(), metrics["overall"]])
    assert metrics["tasks"] == {t: {"psnr_gain": of["psnr_gain"]} for t, of in results["tasks"].items()}
    pairs = read_pairs(project / "index.parquet", "val")
    student, dataset = Student.from_pretrained(str(project / "student")), PairDataset(pairs, None, 1, 0)
    for task, values in results["tasks"].items():
        scores = []
        for row in np.flatnonzero(pairs.task == task):
            lq, gt = dataset.whole_image(int(row))
            with torch.no_grad():
                restored = student(torch.from_numpy(lq)[None])[0].numpy().clip(0, 1)
            scores.append([psnr(restored, gt), ssim(restored, gt), psnr(lq, gt), ssim(lq, gt)])
        means = np.mean(scores, axis=0)
        assert [values[k] for k in ("psnr", "ssim", "psnr_input", "ssim_input")] == pytest.approx(means, abs=1e-4)
        assert values["psnr_gain"] == pytest.approx(values["psnr"] - values["psnr_input"]) and values["n"] == len(
            scores
        )
    gains = [values["psnr_gain"] for values in metrics["tasks"].values()]
    assert metrics["overall"]["psnr_gain"] == pytest.approx(np.mean(gains)), "the unweighted mean over tasks"
    summary = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"mean gain {np.mean(gains):+.2f} dB" in summary and "6 images of 2 tasks (val, basicsr)" in summary


def test_tables_and_panels_are_written(project, tmp_path):
    assert run(project, tmp_path, extra_metrics=["sam", "ms_ssim"], crop_border=1) == 0
    folder = tmp_path / "evaluation"
    rows = list(csv.DictReader(open(folder / "per_image.csv")))
    assert len(rows) == 6 and all(float(row["psnr"]) < IDENTICAL_DB and float(row["sam"]) > 0 for row in rows)
    assert all(
        float(r["psnr_gain"]) == pytest.approx(float(r["psnr"]) - float(r["psnr_input"]), abs=2e-4) for r in rows
    )
    sets = list(csv.DictReader(open(folder / "datasets.csv")))
    assert len(sets) == 3 and all((row["variant"], row["crop_border"]) == ("basicsr", "1") for row in rows + sets)
    assert all(float(row["sam"]) > 0 and row["sam_n"] == "2" and row["ms_ssim_n"] == "0" for row in sets)
    results = json.loads((folder / "results.json").read_text())
    for values in results["datasets"].values():
        low, high = values["psnr_gain_ci95"]
        assert low <= values["psnr_gain"] <= high
    table = (folder / "table.md").read_text()
    assert "variant `basicsr`" in table and "**mean over tasks**" in table and "paper" not in table.lower()
    assert "| – → – (0 of 2) |" in table, "images too small for ms_ssim end nothing, and are counted"
    sheets = {file.stem: Image.open(file).size for file in (folder / "panels").glob("*.png")}
    assert set(sheets) == {"denoising", "deraining", "overview"}
    assert sheets["denoising"][1] > sheets["deraining"][1], "three rows against two"


def test_the_border_is_left_out_of_every_metric(project, tmp_path):
    """The numbers that are written are those of the metrics with the border that the caption names."""
    assert run(project, tmp_path, "--model", "input", extra_metrics=["sam"], crop_border=3, panels=False) == 0
    pairs = read_pairs(project / "index.parquet", "val")
    lq, gt = PairDataset(pairs, None, 1, 0).whole_image(0)
    rows = list(csv.DictReader(open(tmp_path / "evaluation-input" / "per_image.csv")))
    assert float(rows[0]["sam"]) == pytest.approx(extra_metric("sam", lq, gt, 3), abs=1e-4)
    assert float(rows[0]["psnr"]) == pytest.approx(psnr(lq, gt, crop_border=3), abs=1e-4)
    assert "border of 3 pixels left out" in (tmp_path / "evaluation-input" / "table.md").read_text()


def test_the_input_is_its_own_baseline_beside_the_student(project, tmp_path, capsys):
    assert run(project, tmp_path) == 0
    student = contents(tmp_path)
    assert run(project, tmp_path, "--model", "input", panels=False) == 0
    assert "evaluation-input" in capsys.readouterr().out.splitlines()[-1]
    overall = json.loads((tmp_path / "evaluation-input" / "metrics.json").read_text())["overall"]
    assert overall["psnr_gain"] == 0 and overall["psnr"] == overall["psnr_input"]
    assert not (tmp_path / "evaluation-input" / "panels").exists()
    assert student == {name: data for name, data in contents(tmp_path).items() if "evaluation-input" not in name}


def contents(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "params.yaml"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_out_is_a_folder_of_its_own(project, tmp_path):
    kept = tmp_path / "mine" / "panels" / "kept.txt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert run(project, tmp_path, "--out", str(tmp_path / "mine"), panels=False) == 0
    assert {"metrics.json", "results.json", "table.md"} <= {file.name for file in (tmp_path / "mine").iterdir()}
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "evaluation").exists()
    assert kept.exists(), "panels that are not of an evaluation are not removed"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], "evaluation"),
        (["--model", "input"], "evaluation-input"),
        (["--model", "input", "--split", "val"], "evaluation-input-val"),
    ],
)
def test_another_model_or_split_is_written_beside_the_stages_own(project, tmp_path, arguments, folder):
    assert run(project, tmp_path, *arguments, panels=False) == 0
    assert (tmp_path / folder / "table.md").exists()
    assert (tmp_path / ("metrics.json" if not arguments else f"{folder}/metrics.json")).exists()
    assert (tmp_path / "metrics.json").exists() is not bool(arguments)


def test_only_its_own_pictures_are_replaced(project, tmp_path):
    (tmp_path / "evaluation/panels").mkdir(parents=True)
    (tmp_path / "evaluation/panels/mine.png").write_bytes(b"mine")
    assert run(project, tmp_path) == 0
    assert {"mine.png", "overview.png", "denoising.png"} <= {f.name for f in (tmp_path / "evaluation/panels").iterdir()}
    assert run(project, tmp_path, tasks=["deraining"]) == 0
    left = {file.name for file in (tmp_path / "evaluation/panels").iterdir()}
    assert left == {"mine.png", "overview.png", "deraining.png"}


def test_a_stopped_run_goes_on_where_it_was(project, tmp_path, monkeypatch):
    score, calls = evaluation_run._score, []

    def stopping(*arguments):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(arguments)
        return score(*arguments)

    monkeypatch.setattr(evaluation_run, "_score", stopping)
    assert run(project, tmp_path, panels=False) == 130
    assert not (tmp_path / "metrics.json").exists()
    (log,) = (tmp_path / "evaluation" / "finished").glob("*.jsonl")
    log.write_text(log.read_text()[:-20])  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(evaluation_run, "_score", lambda *a: calls.append(a) or score(*a))
    assert run(project, tmp_path, panels=False) == 0
    assert len(calls) == 4 + 3, "three of the four whole lines are kept"
    (tmp_path / "fresh").mkdir()
    assert run(project, tmp_path / "fresh", panels=False) == 0
    assert (tmp_path / "metrics.json").read_text() == (tmp_path / "fresh" / "metrics.json").read_text()
    measured = len(calls)
    assert run(project, tmp_path, panels=False) == 0
    assert len(calls) == measured + 6, "a finished run is measured anew: the code may be another"


def test_two_processes_equal_one(project, tmp_path):
    assert run(project, tmp_path) == 0
    alone = {name: (tmp_path / name).read_text() for name in ("metrics.json", "evaluation/per_image.csv")}
    two = tmp_path / "two"
    two.mkdir()
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment = os.environ | rendezvous | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "student.eval", "--params", str(write_params(project, two)), "--device", "cpu"]
    processes = [  # what torchrun starts, without its own seconds
        subprocess.Popen(
            command, cwd=ROOT, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE
        )
        for rank in "01"
    ]
    for process in processes:
        assert process.wait(timeout=600) == 0, process.communicate()[1][-2000:]
    assert not list((two / "evaluation" / "finished").glob("*.jsonl")), "kept for a stopped run alone"
    assert alone == {name: (two / name).read_text() for name in alone}


@pytest.mark.parametrize(
    ("arguments", "section", "message"),
    [
        (["--split", "test"], {}, "no usable row of split 'test'"),
        (["--model", "no/such/folder"], {}, "no/such/folder"),
        ([], {"tasks": ["derraining"]}, "split 'val' has: denoising, deraining"),
        ([], {"variant": "psnr_y"}, "eval.variant"),
        ([], {"splitt": "val"}, "did you mean 'split'?"),
        ([], {"extra_metrics": ["lpisp"]}, "unknown metric 'lpisp'"),
        ([], {"extra_metrics": ["lpips"]}, "torchvision of this torch's version"),
        (["--set", "paths.index=missing.parquet"], {}, "missing.parquet: no such index"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(project, tmp_path, monkeypatch, capsys, arguments, section, message):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert run(project, tmp_path, *arguments, **section) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "metrics.json").exists()


def test_a_model_folder_without_weights_is_named(project, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((project / "student" / "config.json").read_text())
    assert run(project, tmp_path, "--model", str(tmp_path / "empty")) == 1
    assert "model.safetensors" in capsys.readouterr().err


def test_an_image_too_small_for_the_variant_is_left_out_by_name(tmp_path, capsys):
    toy_training.make_data(tmp_path)
    for side in ("gt", "lq"):  # after the index: as one that was cut off by hand
        toy_training.save_png(tmp_path / "natural_deraining/val" / side / "0.png", np.zeros((12, 40, 3)))
    assert run(tmp_path, tmp_path, "--model", "input", variant="promptir", panels=False) == 0
    assert "natural_deraining/val/lq/0.png" in (error := capsys.readouterr().err) and "smaller than 16" in error
    results = json.loads((tmp_path / "evaluation-input/results.json").read_text())
    assert results["datasets"]["natural_deraining"]["n"] == 1 and results["datasets"]["natural_denoising"]["n"] == 2
