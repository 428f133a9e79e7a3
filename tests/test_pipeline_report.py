"""The report: the files' own numbers, honest about what is missing, closed to the network and to hostile texts."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_run import TASKS, write_run, write_toy_release

from pipeline import report as stage
from pipeline.reporting import page as report_page
from pipeline.reporting import results, style
from pipeline.reporting.blocks import Missing, listed, pretty, visible
from pipeline.reporting.config import ReportConfig
from pipeline.reporting.inputs import Inputs
from student.evaluation import panels as drawn
from student.params import Paths

INDEX = "artifacts/index.parquet"


class Page(HTMLParser):
    """What a browser would find on the page."""

    def __init__(self, file: Path = Path("artifacts/report/index.html")):
        super().__init__()
        self.html = file.read_text(encoding="utf-8")
        self.open, self.images, self.text, self.headings, self.rows, self.tags = [], [], "", [], [], set()
        self.feed(self.html)
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "title"} & set(self.open):
            self.text += data
        if {"h2", "h3", "summary"} & set(self.open):
            self.headings.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run and the line that its report ends with; copy it before changing anything."""
    root = tmp_path_factory.mktemp("run")
    write_run(root)
    done = processes.run(root, "-m", "pipeline.report")
    assert (done.returncode, done.stderr) == (0, "")
    return root, done.stdout


@pytest.fixture
def project(run, tmp_path, monkeypatch):
    shutil.copytree(run[0], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("report"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_whole_run_gives_every_section_in_one_closed_file_results_first(run):
    page = Page(run[0] / "artifacts/report/index.html")
    order = ["Results", "Before and after", "Scores", "Data", "Captions", "Map of the priors", "Training", "Provenance"]
    assert [title for title in page.headings if title in order] == order
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page.html) and "@import" not in page.html
    for image in page.images:
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert content[:8] == b"\x89PNG\r\n\x1a\n" and "alt" in image and int(image["width"]) > 0
    assert {file.stem for file in (run[0] / "artifacts/report/figures").iterdir()} == set(report_page.FIGURES)
    assert run[1].startswith("report: artifacts/report/index.html, ") and "not shown" not in run[1]
    assert "24 pairs" in page.text and "Left out: 1 unreadable" in page.text and "300 steps" not in page.text


def test_numbers_are_the_files_and_a_gain_needs_an_interval_without_0(run):
    page = Page(run[0] / "artifacts/report/index.html")
    found = {row[0]: row[1:7] for row in page.rows if len(row) == 7}
    before_after = ["8", "29.25 / –", "30.50 / 0.9000"]
    assert found["natural SR ×4"] == [*before_after, "+2.00 dB [+1.00, +3.00]", "gain", "+2.00"]
    assert found["natural deraining"] == [*before_after, "+0.10 dB [-0.20, +0.40]", "not shown", "+0.10"]
    assert found["medical SR ×4"] == [*before_after, "-1.00 dB [-1.50, -0.50]", "loss", "-1.00"]
    assert found["medical denoising"] == [*before_after, "–", "clean input", "–"]
    assert found["remote sensing cloud removal"][3] == "+0.003 dB [+0.002, +0.004]", "no +0.00 that excludes 0"
    assert found["mean over tasks"][3:5] == ["+1.62 dB [+1.50, +1.75]", "gain"]
    assert (
        "Gain: remote sensing SR ×4, natural SR ×4 and remote sensing cloud removal. Loss: medical SR ×4." in page.text
    )
    assert results.verdict({"psnr_gain": 9, "psnr_gain_ci95": [9, 9]}) == "not shown", "one image has no interval"


def test_one_colour_means_one_thing():
    assert (style.BETTER, style.WORSE) == (drawn.GOOD, drawn.BAD), "as in the evaluation's pictures"
    assert not {style.BETTER, style.WORSE, style.UNSURE, style.INK} & set(style.DOMAINS)


def test_texts_from_outside_stay_text_and_name_no_file(project):
    """Domain, task and data set may come from anywhere: none of them may leave the folder, or the line of a table."""
    bad = "../../../x<script>$\\frac$\u202e\x1b[2J"
    rows = pq.read_table(INDEX).to_pylist()
    pq.write_table(pa.Table.from_pylist([row | {"domain": bad, "task": bad, "dataset": bad} for row in rows]), INDEX)
    shas, rng = {row["gt_sha256"]: bad for row in rows}, np.random.default_rng(0)
    shutil.rmtree("artifacts/caption_shards")
    aliases = [("a.png", bad, bad, sha256) for sha256 in shas]
    import toy_run

    toy_run.SUBJECTS[bad] = "a <b>cat</b> \x1b[2J"
    write_toy_release(Path("artifacts/caption_shards"), shas, aliases, rng)
    file = Path("artifacts/evaluation/results.json")
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"datasets": {bad: held["datasets"]["natural_sr_x4"]}, "notes": [bad]}))
    before = {path for path in project.rglob("*") if path.is_file()}
    stage.main([])
    page = Page()
    assert {path.parent.name for path in project.rglob("*") if path.is_file() and path not in before} == {
        "report",
        "figures",
    }
    assert not {"b", "script"} & page.tags and "a <b>cat</b> \ufffd[2J" in page.text
    assert "\u202e" not in page.html and "\x1b" not in page.html and "../../../x<script>" in page.text
    assert "neighbour in their own domain" not in page.text, "a run of one domain claims nothing about domains"
    assert "mean over tasks" not in {row[0] for row in page.rows}, "of one data set there is no mean"


@pytest.mark.parametrize("damage", ["missing", "garbage"])
@pytest.mark.parametrize(
    ("path", "reads", "command"),
    [
        (INDEX, "pairs", "python -m pipeline.index"),
        ("artifacts/caption_shards", "sample", "python -m pipeline.embed"),
        ("artifacts/student/log.jsonl", "log", "accelerate launch student/train.py"),
        ("artifacts/evaluation/results.json", "results", "python -m student.eval"),
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
    out, page = capsys.readouterr().out, Page()
    for command in ("pipeline.index", "pipeline.embed", "accelerate launch student/train.py", "student.eval"):
        assert command in page.text and command in out
    assert "Code" in page.headings and page.text.count("Not shown") == len(out.splitlines()) - 1


def test_only_charts_of_the_report_are_removed(project):
    figures = project / "artifacts/report/figures"
    figures.mkdir(parents=True)
    for name in ("mine.png", "training-losses.png"):
        (figures / name).write_text("old")
    Path("artifacts/student/log.jsonl").unlink()
    stage.main([])
    assert (figures / "mine.png").read_text() == "old", "another's picture"
    assert {file.name for file in figures.iterdir()} == {"mine.png", "results-changes.png", "priors-map.png"}


def test_a_large_release_is_read_in_equal_shares(project):
    sample = Inputs(Paths(), ReportConfig(max_priors=13)).sample
    assert sample.rule == "12 of 24 images: 2 of each data set, those of the smallest sha256."
    every = Inputs(Paths(), ReportConfig()).sample
    assert len(every.sha256s) == 4 * len(TASKS) and every.rule.startswith("All 24")
    assert sample.sha256s == sorted(sample.sha256s) and set(sample.sha256s) < set(every.sha256s)
    assert len(sample.captions) == len(sample.vectors) == len(sample.domains) == 12


def test_wrong_parameters_are_named_and_leave_nothing(project):
    with pytest.raises(SystemExit, match=r"report: params: unknown key report\.max_prior = 3; did you mean 'max_prior"):
        stage.main(["--set", "report.max_prior=3"])
    assert not (project / "artifacts/report").exists()


def test_names_and_lists_read_like_prose():
    assert pretty("remote_sensing_sr_x4") == "remote sensing SR ×4" and len(pretty("x" * 99)) == 40
    assert [listed([]), listed("a"), listed("ab"), listed("abc")] == ["", "a", "a and b", "a, b and c"]
    assert visible("naïve\u3000猫\t\u202egnp\x07\udc80") == "naïve 猫 \ufffdgnp\ufffd\ufffd"


def test_help_teaches_and_needs_nothing_heavy():
    probe = "import sys; sys.argv = ['report', '--help']; from pipeline.report import main\n"
    probe += "try: main()\nexcept SystemExit: pass\n"
    probe += "assert not {'matplotlib', 'torch', 'sklearn'} & set(sys.modules), 'heavy'"
    assert "opens from disk" in processes.printed(Path(), "-c", probe)


@pytest.mark.slow
def test_the_page_in_a_browser_is_short_and_as_wide_as_the_window(browser, run):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto((run[0] / "artifacts/report/index.html").as_uri())
    width, height = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
    assert width == 1280 and height < 9000
