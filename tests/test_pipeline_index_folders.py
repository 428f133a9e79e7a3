"""Odd folders: what is below them is complete or an error, and no loop of links multiplies or hides a picture."""

import os
import tempfile
from pathlib import Path

import pytest
from picture_files import picture

from pipeline.indexing.config import DatasetSpec, IndexConfig, SplitSpec
from pipeline.indexing.folders import places, walk
from pipeline.indexing.pairs import candidates
from student.params import ParamsError
from student.restoration.paths import plan_jobs


def below(folder: Path) -> list[str]:
    return [os.path.relpath(os.path.join(place, name), folder) for place, names in walk(str(folder)) for name in names]


def found(root: Path, **split) -> list:
    dataset = DatasetSpec(name="x", domain="d", task="t", splits={"train": SplitSpec(**split)})
    return list(candidates(IndexConfig(root=str(root), datasets=[dataset]), dataset, "train"))


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_back_are_passed_over_and_said(tmp_path, capsys, target):
    picture(tmp_path / "data/gt/0.png", 0)
    picture(tmp_path / "data/lq/0.png", 1)
    for name in ("latest", "current"):
        (tmp_path / "data/gt" / name).symlink_to(target)
    assert below(tmp_path / "data/gt") == ["0.png"]
    assert "gt/latest: passed over: a link to a folder that it lies in" in capsys.readouterr().err


def test_two_folders_that_lead_to_each_other_end(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        picture(tmp_path / one / f"{one}.png", 0)
        (tmp_path / one / "other").symlink_to(tmp_path / other)
    assert below(tmp_path / "a") == ["a.png", "other/b.png"]


def test_thumbnails_of_a_disk_are_no_pictures_and_what_is_not_read_is_counted(tmp_path, capsys):
    for name in ("gt/0.png", "gt/@eaDir/0.png/SYNOPHOTO_THUMB_M.png", "gt/__MACOSX/0.png", "gt/#recycle/1.png"):
        picture(tmp_path / name, 0)
    for name in ("scan.dcm", "head.nii.gz", "a.heic", "b.HEIC", "notes.txt"):
        (tmp_path / "gt" / name).write_bytes(b"?")
    degradation = {"kind": "gaussian_noise", "sigma": 25}
    assert [row.gt for row in found(tmp_path, gt="gt", degradation=degradation)] == [str(tmp_path / "gt/0.png")]
    said = capsys.readouterr().err
    assert "passed over: 1 .dcm, 1 .gz, 2 .heic; python -m pipeline.prepare slices reads DICOM and NIfTI" in said
    plan = plan_jobs(str(tmp_path / "gt"), str(tmp_path / "out"))
    assert [job.source.name for job in plan.jobs] == ["0.png", "head.nii.gz", "scan.dcm"], "restoring reads the latter"


def test_a_link_to_another_folder_is_followed_each_time(tmp_path):
    """The same clean images under two names, for two kinds of input, are meant."""
    picture(tmp_path / "clean/0.png", 0)
    (tmp_path / "gt").mkdir()
    for name in ("haze", "rain"):
        (tmp_path / "gt" / name).symlink_to(tmp_path / "clean")
    assert below(tmp_path / "gt") == ["haze/0.png", "rain/0.png"]


@pytest.fixture
def nobody():
    """A folder of somebody who is not root, and this process as that user."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        yield Path(folder)
        for locked in [*Path(folder).glob("**/locked")]:
            locked.chmod(0o700)
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o333])
@pytest.mark.parametrize("pattern", ["gt", "gt/l*", "**/locked/*.png", "g*/*/*.png"])
def test_a_folder_that_cannot_be_listed_is_an_error(nobody, mode, pattern):
    for name in ("open/0.png", "locked/1.png"):
        picture(nobody / "gt" / name, 0)
    (nobody / "gt/locked").chmod(mode)
    with pytest.raises(ParamsError, match="gt/locked: cannot be listed: Permission denied; allow it"):
        [[*walk(place)] for place in places(str(nobody), pattern)]


def test_brackets_in_names_are_names(tmp_path):
    for name in ("[lab] data/part1/0.png", "[lab] data/part2/1.png", "l data/part3/2.png"):
        picture(tmp_path / name, 0)
    root = str(tmp_path / "[lab] data")
    assert places(root, "part*") == [f"{root}/part1", f"{root}/part2"]
    assert places(str(tmp_path), "[lab] data/part[12]/*.png") == [f"{root}/part1/0.png", f"{root}/part2/1.png"]
    assert places(str(tmp_path), f"{root}/part1") == [f"{root}/part1"]
    assert places(str(tmp_path), "**/*.png")[0] == f"{root}/part1/0.png" and places(str(tmp_path), "gone*") == []


@pytest.mark.parametrize(
    ("name", "told"),
    [(b"caf\xe9.png", r"caf\xe9.png"), (b"\x1b[31mred.png", r"\x1b[31mred.png")],
    ids=["latin", "escape"],
)
def test_a_name_that_is_no_text_is_a_fault_that_tables_and_terminals_can_take(tmp_path, name, told):
    picture(tmp_path / "gt" / os.fsdecode(name), 0)
    picture(tmp_path / "gt/plain\u00a0\U0001f469\u200d\U0001f52c.png", 0)
    bad, good = sorted(found(tmp_path, gt="gt", degradation={"kind": "rain"}), key=lambda pair: pair.status == "ok")
    assert (bad.status, good.status) == ("unreadable", "ok")
    assert bad.gt.endswith(told) and "is not UTF-8, or holds control characters; rename it" in bad.error
    bad.error.encode("utf-8")
