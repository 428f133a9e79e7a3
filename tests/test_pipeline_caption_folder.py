"""The captions of a folder in one line: a stranger's folder in, table, page and release out."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import processes
import pytest
from PIL import Image

from pipeline.captioning.gallery import NEAREST, neighbours
from shards import open_release


def run(where: Path, *arguments: str) -> subprocess.CompletedProcess:
    return processes.run(where, "-P", "-m", "pipeline.caption", *arguments)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A folder as people have them, captioned from a place that holds packages of the same names."""
    where = tmp_path_factory.mktemp("home")
    for hostile in ("pipeline", "student"):
        (where / hostile).mkdir()
        (where / hostile / "__init__.py").write_text("raise SystemExit('the wrong package')")
    photos = where / "my photos"
    (photos / "été").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "été/b.jpg", "=1+1.png", "<img src=x onerror=alert(1)>.png"):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(photos / name)
    shutil.copy(photos / "a.png", photos / "été" / "copy of a.png")
    Image.fromarray(np.full((30, 30), 60000, np.uint16)).save(photos / "scan.tif")
    (photos / "broken.png").write_bytes(b"no image")
    (photos / "notes.txt").write_text("not an image")
    done = run(where, "my photos", "captions")
    assert done.returncode == 0, done.stderr
    return where, done


def table(where: Path) -> dict[str, dict]:
    with open(where / "captions/captions.csv", newline="", encoding="utf-8") as lines:
        return {row["file"]: row for row in csv.DictReader(lines)}


def test_every_file_has_its_line_and_the_release_its_captions(captioned):
    where, done = captioned
    rows, release = table(where), open_release(where / "captions/release")
    assert set(rows) == {
        "a.png", "été/b.jpg", "'=1+1.png", "<img src=x onerror=alert(1)>.png", "été/copy of a.png", "scan.tif",
    }  # fmt: skip
    assert all(row["content"] and row["viewpoint"] for row in rows.values()) and len(release) == 5
    assert {**rows["a.png"], "file": ""} == {**rows["été/copy of a.png"], "file": ""}
    assert "broken.png" in done.stderr and "1 unreadable" in done.stdout
    assert not any(str(where) in path for path in release.aliases()["path"].to_pylist())
    assert {file.name for file in where.iterdir()} == {"pipeline", "student", "my photos", "captions"}


@pytest.mark.slow
def test_the_same_command_goes_on_and_other_questions_add_captions(captioned):
    where, _ = captioned
    Image.fromarray(np.full((20, 20, 3), 9, np.uint8)).save(where / "my photos/new.bmp")
    done = run(where, "my photos", "captions")
    assert "1 new of 6 images" in done.stdout and "new.bmp" in table(where)
    (where / "questions.yaml").write_text("mood: What is the mood?\n")
    done = run(where, "my photos", "captions", "--questions", "questions.yaml")
    assert done.returncode == 0 and list(table(where)["a.png"]) == ["file", "mood"]
    assert "no model loaded" in run(where, "my photos", "captions").stdout, "the first questions' captions are kept"


def test_the_page_shows_finds_and_compares(browser, captioned):
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: errors.append(dialog.message))
    page.goto((captioned[0] / "captions/index.html").as_uri())
    page.wait_for_function("document.querySelectorAll('article').length >= 5")
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    page.fill("input", "b.jpg")
    page.wait_for_function("document.querySelectorAll('article').length == 1")
    page.click("article button")
    page.wait_for_function("document.querySelectorAll('article').length >= 5")
    assert "nearest to été/b.jpg" in page.inner_text("#told") and errors == []


def test_neighbours_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    for n in (2, 9, 63, 64, 65, 700):
        unit = rng.normal(size=(n, 12)).astype(np.float32)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
        count = min(NEAREST, n - 1)
        near = np.array(list(neighbours(unit, count)))
        assert near.shape == (n, count) and not (near == np.arange(n)[:, None]).any()
        expected = -np.sort(-similarity, axis=1)[:, :count]
        assert np.allclose(np.take_along_axis(similarity, near, axis=1), expected, atol=1e-5)
    assert [one.tolist() for one in neighbours(unit[:1], 0)] == [[]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere: no such folder"),
        (["photos"], "FOLDER needs OUT"),
        (["photos", "s3://lab/out"], "OUT is a folder of this machine"),
        (["photos", "photos/captions"], "lies in photos"),
        (["photos", "out", "--questions", "q.yaml"], "must hold lines such as"),
        (["--model", "x"], "go with FOLDER OUT"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    (tmp_path / "photos").mkdir()
    (tmp_path / "q.yaml").write_text(json.dumps(["what?"]))
    done = run(tmp_path, *arguments)
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
