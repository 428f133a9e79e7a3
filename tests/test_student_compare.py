"""student.compare: differences by image, of one kind of numbers."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML

from student import compare
from student.files import write_file


def write(folder, scores, variant="basicsr"):
    folder.mkdir()
    with open(folder / "per_image.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, ["dataset", "task", "image", "psnr", "psnr_gain", "variant", "crop_border"])
        rows.writeheader()
        for dataset, values in scores.items():
            for image, psnr in enumerate(values):
                kind = {"variant": variant, "crop_border": 0, "task": f"de{dataset}", "psnr_gain": psnr - 20}
                rows.writerow({"dataset": dataset, "image": f"{image}.png", "psnr": psnr, **kind})
    return str(folder)


def test_what_images_share_cancels_and_only_images_of_both_are_compared(tmp_path, capsys):
    first = write(tmp_path / "first", {"rain": [20, 30, 40], "noise": [30, 30]})
    second = write(tmp_path / "second", {"rain": [21, 31, 41], "noise": [29]})
    out = ["--out", str(tmp_path / "table.md"), "--page", str(tmp_path / "page.html")]
    assert compare.main([first, second, *out]) == 0
    text = (tmp_path / "table.md").read_text()
    assert "| rain | 3 | 30.00 | 31.00, +1.00 [+1.00, +1.00] |" in text and text in capsys.readouterr().out
    assert "| noise | 2 | 30.00 | 29.00 (of 1), -1.00 [-1.00, -1.00] |" in text


def picture(folder: Path, task: str) -> None:
    Path(folder, "panels").mkdir(exist_ok=True)
    Image.new("RGB", (60, 20), "gray").save(Path(folder, "panels", f"{task}.png"))


def curve(folder: Path, name: str, column: str, values: list[float]) -> None:
    lines = ["\t".join(("step", column)), *(f"{10 * i}\t{value}" for i, value in enumerate(values))]
    write_file(Path(folder, "curves", f"{name}.tsv"), "\n".join(lines) + "\n")


@pytest.fixture
def two_runs(tmp_path):
    """One that is surely better in rain and unsure in noise, with curves and a picture of each."""
    scores = {"rain": [20, 30, 40], "noise": [30, 31]}, {"rain": [21, 31, 41.5], "noise": [29, 33]}
    runs = [write(tmp_path / name, of) for name, of in zip(("a & b", "second"), scores, strict=True)]
    for run, gain in zip(runs, (1.0, 2.0), strict=True):
        picture(run, "derain")
        curve(run, "train", "loss", [0.3, 0.1 / gain])
        curve(run, "val/rain", "psnr_gain", [0, gain / 2, gain])
    return runs


def test_the_page_is_closed_and_shows_the_table_s_numbers(two_runs, tmp_path):
    file = tmp_path / "page.html"
    assert compare.main([*two_runs, "--page", str(file), "--out", str(tmp_path / "table.md")]) == 0
    text = file.read_text("utf-8")
    assert "a &amp; b" in text and not re.findall(r'(?:src|href)="(?!data:image/png)', text) and "<script" not in text
    assert '<span class="better">+1.17</span> [+1.00, +1.50]' in text  # rain: no image got worse
    assert '<span class="">+0.50</span> [-1.00, +2.00]' in text  # noise: one did
    assert "| **mean over tasks** | 5 | 30.25 | 31.08, +0.83 [" in (tmp_path / "table.md").read_text()
    assert text.count("<polyline") == 4 and text.count("data:image/png") == 2


def test_a_page_of_runs_without_curves_and_pictures_shows_what_there_is(tmp_path):
    runs = [write(tmp_path / name, {"rain": [30]}) for name in ("first", "second")]
    assert compare.main([*runs, "--page", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "By task" in text and "Curves" not in text and "Pictures" not in text


@pytest.mark.slow
def test_the_page_in_a_browser(browser, two_runs, tmp_path):
    assert compare.main([*two_runs, "--page", str(tmp_path / "page.html")]) == 0
    page, wrong = browser.new_page(viewport={"width": 1000, "height": 800}), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: wrong.extend([request.url] * request.url.startswith("http")))
    page.goto((tmp_path / "page.html").as_uri())
    assert [head.inner_text() for head in page.locator("h2").all()] == ["Overall", "By task", "Curves", "Pictures"]
    widths = "[document.documentElement.scrollWidth, ...[...document.images].map(i => i.naturalWidth)]"
    assert page.evaluate(widths) == [1000, 60, 60] and page.locator("svg").count() == 3 and not wrong
    inside = "[...document.querySelectorAll('svg')].every(s => { const b = s.getBBox(), v = s.viewBox.baseVal; "
    inside += "return b.x >= -1 && b.x + b.width <= v.width + 1 && b.y + b.height <= v.height + 1 })"
    assert page.evaluate(inside), "nothing is drawn outside of its chart"


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
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
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
