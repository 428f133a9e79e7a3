"""docs/extending.md, done as it says: each section's toy is added to a copy of the project and tried."""

import re
import shutil
from pathlib import Path

import pytest
from processes import ROOT, printed, run

SECTIONS = dict(
    re.findall(r"^## (An? .+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/extending.md").read_text("utf-8"), re.M | re.S)
)
PROMISED = dict(
    re.findall(r"^\| \[(.+?)\]\(#.+?\) \| (.+?) \|$", (ROOT / "docs/extending.md").read_text("utf-8"), re.M)
)


def test_the_page_has_every_seam():
    seams = {"A backbone", "A loss", "A teacher", "An image format", "A data source", "A degradation", "A metric"}
    assert set(SECTIONS) == set(PROMISED) == seams


def apply(diff: str, folder: Path) -> set[str]:
    """Make the changes of `diff`, whose hunks need no line numbers: what they take away stands in the file once."""
    files = re.split(r"^--- a/(.+)\n\+\+\+ b/\1\n", diff, flags=re.M)[1:]
    for name, hunks in zip(files[::2], files[1::2], strict=True):
        text = (folder / name).read_text("utf-8")
        for hunk in filter(None, re.split(r"^@@\n", hunks, flags=re.M)):
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in ("- ", "+ "))
            assert text.count("\n" + before) == 1, f"{name}: {before}"
            text = text.replace("\n" + before, "\n" + after)
        (folder / name).write_text(text, encoding="utf-8")
    return set(files[::2])


@pytest.mark.parametrize("seam", SECTIONS)
def test_the_toy_works_as_the_page_says(seam, tmp_path, tmp_path_factory):
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", SECTIONS[seam], re.M | re.S)
    for room in ("pipeline", "teacher", "student", "shards"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "mini"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    touched, trial = set(), None
    for language, text in blocks:
        if language == "diff":
            touched |= apply(text, tmp_path)
        elif name := re.match(r"# (\S+\.py)\n", text):
            assert not (tmp_path / name[1]).exists()
            (tmp_path / name[1]).write_text(text, encoding="utf-8")
            touched.add(name[1])
        else:
            trial = text
    assert touched == set(re.findall(r"`(.+?)`", PROMISED[seam])), "more files than the table promises"
    printed(tmp_path, "-c", trial, PYTHONPATH=str(tmp_path))
    assert run(tmp_path_factory.mktemp("bare"), "-c", trial).returncode, "the trial passes without the toy"
