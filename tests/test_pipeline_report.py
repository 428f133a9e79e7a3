"""The report: complete on a whole run, honest about what is missing, closed to the network and to hostile captions."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from toy_run import TASKS, write_run

from pipeline import report as stage
from pipeline.reporting import page as report_page
from pipeline.reporting import results as report_results
from pipeline.reporting.blocks import Figure, Missing, Section
from pipeline.reporting.config import ReportConfig
from pipeline.reporting.inputs import Inputs
from student.params import Paths


class Page(HTMLParser):
    """What a browser would find on the page."""

    void = {"meta", "img", "br"}

    def __init__(self, file: Path):
        super().__init__()
        self.html = file.read_text(encoding="utf-8")
        self.open, self.images, self.text, self.headings, self.tags = [], [], "", [], set()
        self.feed(self.html)
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.text += data
        if {"h2", "h3"} & set(self.open):
            self.headings.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run and the line that its report ends with; copy it before changing anything."""
    root = tmp_path_factory.mktemp("run")
    write_run(root)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.report"], cwd=root, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return root, done.stdout


@pytest.fixture
def project(run, tmp_path, monkeypatch):
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("report"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_whole_run_gives_every_section_in_one_closed_file(run):
    root, out = run
    page = Page(root / "artifacts/report/index.html")
    for section in ("Data", "Teacher", "Priors", "Training", "Prompts", "Results", "Provenance"):
        assert section in page.headings
    for figure in (
        "Losses",
        "Map of the priors by domain",
        "Usage of the task pool",
        "Gates of the blocks",
        "Before and after",
    ):
        assert figure in page.headings
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page.html) and "@import" not in page.html
    for image in page.images:
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and image["alt"] and int(image["width"]) > 0
    beside = list((root / "artifacts/report/figures").glob("*.png"))
    assert len(beside) + 3 == len(page.images), "every picture but the three cards' lies beside the page"
    assert out.startswith("report: artifacts/report/index.html, ") and "blocks" in out
    assert len(page.html) < 8 << 20
    assert "No ablation was run here. To add it:" in page.text and "ablation" not in out, "it is no part of a run"
    assert "300 steps" in page.text and "3 min 0" in page.text, "300 steps of 12 crops at 20 crops a second"


def test_captions_cannot_inject_html(run):
    page = Page(run[0] / "artifacts/report/index.html")
    assert "a <b>cat</b> on a sofa" in page.text and not {"b", "script"} & page.tags


def test_takeaways_are_written_from_the_numbers(project):
    metrics = json.loads(Path("artifacts/metrics.json").read_text())
    inputs = Inputs(Paths(), ReportConfig())
    assert inputs.pairs.num_rows == 4 * len(TASKS), "the unreadable row is left out"
    (figure,), (table,) = report_results.gains(inputs), report_results.table(inputs)
    assert figure.takeaway.startswith("All 6 tasks gain (metric variant basicsr): from +0.50 dB (natural SR ×4)")
    assert table.rows[-1][0] == "mean over tasks" and table.rows[-1][3] == "+3.00"
    metrics["tasks"]["natural_sr_x4"]["psnr_gain"] = -1.25
    Path("artifacts/metrics.json").write_text(json.dumps(metrics))
    (figure,) = report_results.gains(Inputs(Paths(), ReportConfig()))
    assert figure.takeaway.startswith("5 of 6 tasks gain (metric variant basicsr): from -1.25 dB (natural SR ×4)")


@pytest.mark.parametrize("damage", ["missing", "garbage"])
@pytest.mark.parametrize(
    ("path", "reads", "command"),
    [
        ("artifacts/index.parquet", "pairs", "python -m pipeline.index"),
        ("artifacts/caption_shards", "sample", "python -m pipeline.embed"),
        ("artifacts/caption_stats.json", "caption_stats", "python -m pipeline.embed"),
        ("artifacts/student/log.jsonl", "log", "accelerate launch student/train.py"),
        ("artifacts/student/config.json", "student_config", "accelerate launch student/train.py"),
        ("artifacts/student/model.safetensors", "weights", "accelerate launch student/train.py"),
        ("artifacts/metrics.json", "metrics", "python -m student.eval"),
        ("artifacts/evaluation/results.json", "results", "python -m student.eval"),
        ("artifacts/evaluation/per_image.csv", "image_gains", "python -m student.eval"),
    ],
)
def test_what_is_missing_or_broken_is_named_with_its_command(project, path, reads, command, damage):
    target = project / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    if damage == "garbage":
        target.write_bytes(b"{ not what it should be }\n")
    with pytest.raises(Missing) as missing:
        getattr(Inputs(Paths(), ReportConfig()), reads)
    assert path in missing.value.what and missing.value.command == command


def test_a_report_of_nothing_says_how_to_make_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("{}")
    stage.main([])
    out, page = capsys.readouterr().out, Page(Path("artifacts/report/index.html"))
    for command in ("pipeline.index", "pipeline.embed", "accelerate launch student/train.py", "student.eval"):
        assert command in page.text and command in out
    assert "Code and machine" in page.headings and page.text.count("Not shown") == len(out.splitlines()) - 1


def test_a_second_report_removes_pictures_that_are_gone(tmp_path):
    old, new = (Section("a", "A", "", [Figure(name, "", "", b"\x89PNG" + bytes(20), "")]) for name in ("one", "two"))
    report_page.write(tmp_path, "<p>", [old, new])
    report_page.write(tmp_path, "<p>", [new])
    assert [file.name for file in tmp_path.glob("figures/*")] == ["two.png"]


def test_wrong_parameters_are_named_and_leave_nothing(project):
    with pytest.raises(SystemExit, match=r"report: params: unknown key report\.max_prior = 3; did you mean 'max_prior"):
        stage.main(["--set", "report.max_prior=3"])
    assert not (project / "artifacts/report").exists()


def test_help_teaches_and_needs_nothing_heavy():
    probe = "import sys; sys.argv = ['report', '--help']; from pipeline.report import main\n"
    probe += "try: main()\nexcept SystemExit: pass\n"
    probe += "assert not {'matplotlib', 'torch', 'sklearn', 'wordcloud'} & set(sys.modules), 'heavy'"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "opens from disk" in done.stdout
