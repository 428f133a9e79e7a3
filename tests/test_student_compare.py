"""student.compare: differences by image, of one kind of numbers."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from student import compare


def write(folder, scores, variant="basicsr"):
    folder.mkdir()
    with open(folder / "per_image.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, ["dataset", "image", "psnr", "variant", "crop_border"])
        rows.writeheader()
        for dataset, values in scores.items():
            for image, psnr in enumerate(values):
                row = {"dataset": dataset, "image": f"{image}.png", "psnr": psnr, "variant": variant, "crop_border": 0}
                rows.writerow(row)
    return str(folder)


def test_what_images_share_cancels_and_only_images_of_both_are_compared(tmp_path, capsys):
    first = write(tmp_path / "first", {"rain": [20, 30, 40], "noise": [30, 30]})
    second = write(tmp_path / "second", {"rain": [21, 31, 41], "noise": [29]})
    assert compare.main([first, second, "--out", str(tmp_path / "table.md")]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "| rain | 3 | 30.00 | 31.00, +1.00 [+1.00, +1.00] |" in text and text in capsys.readouterr().out
    assert "| noise | 2 | 30.00 | 29.00 (of 1), -1.00 [-1.00, -1.00] |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["first", "other"], "numbers of different kinds"), (["first", "none"], "none: no evaluation there")],
)
def test_what_cannot_be_compared_is_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "first", {"rain": [20]})
    write(tmp_path / "other", {"rain": [20]}, variant="promptir")
    assert compare.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


TRAIN = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from student.training.log import RunLog
from student.training.losses import TERMS
lr = json.loads(Path("params.yaml").read_text())["train"]["lr"]
log = RunLog(Path("student"), SimpleNamespace(trackers=[]), None, Path("panels"))
row = {"loss": lr, "lr": lr, "grad_norm": 1, "images_per_second": 1, **{f"loss_{term}": lr for term in TERMS}}
for step in (1, 2):
    log.write({"step": step, **row})
    log.write({"step": step, "val": {name: {"psnr": 20, "psnr_gain": step * lr} for name in ("rain", "noise")}})
log.write_curves()
for name in ("config.json", "model.safetensors", "README.md"):
    Path("student", name).write_text(str(lr))
"""


def test_dvc_plots_diff_shows_the_curves_of_two_runs_each_data_set_by_its_name(tmp_path):
    """The outs and plots of dvc.yaml, around a training that logs and computes nothing."""
    root = Path(__file__).parents[1]
    pipeline = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text("utf-8"))
    train = {"cmd": f"{sys.executable} train.py", "params": ["train.lr"], "outs": pipeline["stages"]["train"]["outs"]}
    plots = [plot for plot in pipeline["plots"] if "report" not in str(plot)]
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"train": train}, "plots": plots}))
    (tmp_path / "train.py").write_text(TRAIN)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    identity = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    environment = {**os.environ, **identity, "PATH": path, "PYTHONPATH": str(root)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    for lr in (1.0, 2.0):
        (tmp_path / "params.yaml").write_text(json.dumps({"paths": {"student": "student"}, "train": {"lr": lr}}))
        run("dvc", "repro", "-q")
        run("git", "add", "-A")
        run("git", "commit", "-qm", f"lr {lr}")
    shown = json.loads(run("dvc", "plots", "diff", "HEAD~1", "HEAD", "--json"))["data"]
    for name in ("rain", "noise"):
        (plots,) = (plots for key, plots in shown.items() if key.endswith(f"val{os.sep}{name}.tsv"))
        points = [(point["rev"], float(point["psnr_gain"])) for point in plots[0]["content"]["data"]["values"]]
        assert points == [("HEAD~1", 1.0), ("HEAD~1", 2.0), ("HEAD", 2.0), ("HEAD", 4.0)]
