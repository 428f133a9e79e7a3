"""python -m shards: every verb, its exit code, and one line for a user's mistake."""

import csv
import json

import numpy as np
import pytest
from shards_maker import IDENTITY, make_release, make_rows, sha_of

from shards import open_release, write_release
from shards.__main__ import main


def run(capsys, *arguments) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_info_and_verify(tmp_path, capsys):
    make_release(tmp_path / "r")
    code, text = run(capsys, "info", tmp_path / "r")
    assert code == 0 and "60 images" in text and "some/llava" in text and "medical/set0: 10 images" in text
    assert json.loads(run(capsys, "info", tmp_path / "r", "--json")[1])["rows"] == 60
    code, text = run(capsys, "verify", tmp_path / "r")
    assert code == 0 and "sound" in text
    (tmp_path / "r" / "aliases.parquet").unlink()
    code, text = run(capsys, "verify", tmp_path / "r")
    assert code == 1 and "aliases.parquet: missing" in text and "1 problems" in text
    code, text = run(capsys, "info", tmp_path / "r")
    assert code == 2 and text.startswith("error: ") and "aliases.parquet: missing" in text and text.count("\n") == 1
    assert run(capsys, "verify", tmp_path / "none")[0] == 2


def test_merge_is_the_union(tmp_path, capsys):
    make_release(tmp_path / "a", 0, 40)
    make_release(tmp_path / "b", 30, 60)
    code, text = run(capsys, "merge", tmp_path / "a", tmp_path / "b", tmp_path / "ab")
    assert code == 0 and "60 images" in text
    make_release(tmp_path / "whole", 0, 60)
    assert run(capsys, "diff", tmp_path / "ab", tmp_path / "whole")[0] == 0
    for path in (tmp_path / "ab").iterdir():
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert run(capsys, "merge", tmp_path / "ab", tmp_path / "a", tmp_path / "ab")[0] == 0  # onto itself
    assert len(open_release(tmp_path / "ab", strict=True)) == 60


def test_merge_refuses_other_teachers_and_conflicts(tmp_path, capsys):
    make_release(tmp_path / "a", 0, 40)
    make_release(tmp_path / "b", 30, 60, teacher_fingerprint="f" * 64)
    code, text = run(capsys, "merge", tmp_path / "a", tmp_path / "b", tmp_path / "ab")
    assert code == 2 and "teacher_fingerprint differs" in text and not (tmp_path / "ab").exists()
    rows = make_rows(39, 50)
    next(row for row in rows if row["image_sha256"] == sha_of(39))["captions"][0]["text"] = "Something else."
    write_release(tmp_path / "c", rows, [], **IDENTITY, dim=16)
    code, text = run(capsys, "merge", tmp_path / "a", tmp_path / "c", tmp_path / "ac")
    assert code == 2 and sha_of(39) in text and not (tmp_path / "ac").exists()


def test_one_model_under_two_names_can_be_merged(tmp_path, capsys):
    """A copy in another folder is the same teacher: the fingerprints say what it is."""
    for folder, first, name in (("a", 0, "zoo/llava"), ("b", 30, "mine")):
        make_release(tmp_path / folder, first, first + 30, teacher=IDENTITY["teacher"] | {"name": name})
    for order in (["a", "b"], ["b", "a"]):
        code, text = run(capsys, "merge", *(tmp_path / name for name in order), tmp_path / "ab")
        assert code == 0 and "60 images" in text
        assert open_release(tmp_path / "ab").manifest["teacher"]["name"] == "mine", "whatever the order"
    make_release(tmp_path / "c", 60, 70, teacher=IDENTITY["teacher"] | {"padding": "crop"})
    code, text = run(capsys, "merge", tmp_path / "a", tmp_path / "c", tmp_path / "ac")
    assert code == 2 and "teacher.padding differs" in text and "(None and crop)" in text


def test_diff_counts_what_changed(tmp_path, capsys):
    make_release(tmp_path / "a", 0, 40)
    rows = make_rows(10, 50)
    named = {row["image_sha256"]: row for row in rows}
    named[sha_of(10)]["captions"][0]["text"] = "Something else."
    named[sha_of(11)]["embedding"] *= -1
    write_release(tmp_path / "b", rows, [], **IDENTITY, dim=16)
    code, text = run(capsys, "diff", tmp_path / "a", tmp_path / "b")
    assert code == 1 and "30 images in both (1 with other captions, 1 with other embeddings)" in text
    assert "10 only in" in text and f"{sha_of(10)} other captions" in text and f"{sha_of(11)} other embeddings" in text


@pytest.mark.parametrize("form", ["npy", "jsonl", "csv"])
def test_export(tmp_path, capsys, form):
    make_release(tmp_path / "r")
    out = tmp_path / f"x.{form}"
    code, text = run(capsys, "export", tmp_path / "r", out, "--format", form, "--domain", "medical")
    assert code == 0 and "20 images" in text
    medical = open_release(tmp_path / "r").subset(domain="medical")
    if form == "npy":
        assert np.array_equal(np.load(out), medical.vectors())
        lines = [line.split("\t") for line in (tmp_path / "x.npy.sha256.txt").read_text().splitlines()]
        assert [image for image, _ in lines] == medical.sha256s() and [sha_of(2), "gt/2.png"] in lines
    elif form == "jsonl":
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row["image_sha256"] for row in rows] == medical.sha256s()
        assert all(row["captions"] == medical.captions(row["image_sha256"]) for row in rows)
        source = {"path": "gt/2.png", "dataset": "set0", "domain": "medical"}
        assert [row["files"] for row in rows if row["image_sha256"] == sha_of(2)] == [[source]]
    else:
        rows = list(csv.DictReader(out.open(newline="")))
        assert len(rows) == 40 and {row["text"] for row in rows} >= {'Bright, ünd "fair".', "A brain, number 2."}
        assert {row["files"] for row in rows if row["image_sha256"] == sha_of(2)} == {"gt/2.png"}
    code, text = run(capsys, "export", tmp_path / "r", out, "--format", form)
    assert code == 2 and "exists" in text


def test_what_strangers_wrote_reaches_neither_terminal_nor_spreadsheet_as_a_command(tmp_path, capsys):
    rows = make_rows(0, 3)
    rows[0]["captions"][0]["text"] = '=HYPERLINK("http://a.example")'
    write_release(tmp_path / "r", rows, [("a.png", "set\x1b]0;x\x07", "domain", sha_of(0))], **IDENTITY, dim=16)
    assert "set?]0;x?" in run(capsys, "info", tmp_path / "r")[1]
    run(capsys, "export", tmp_path / "r", tmp_path / "x.csv", "--format", "csv")
    assert "\"'=HYPERLINK(" in (tmp_path / "x.csv").read_text() and "\x1b" not in capsys.readouterr().out


def test_gc_lists_then_removes_only_what_nothing_names(tmp_path, capsys):
    make_release(tmp_path / "r")
    store, named, orphan, spare = tmp_path / "store", IDENTITY["fingerprints"]["content"], "0" * 64, "1" * 64
    for name in (named, orphan, spare, "notes"):
        (store / name).mkdir(parents=True)
        (store / name / "part-0.parquet").write_bytes(b"x" * 100)
    keep = ["--keep", tmp_path / "r", "--keep", spare]
    code, text = run(capsys, "gc", store, *keep)
    assert code == 0 and orphan in text and named not in text and (store / orphan).is_dir()
    assert run(capsys, "gc", store, *keep, "--yes")[0] == 0
    assert {path.name for path in store.iterdir()} == {named, spare, "notes"}
    code, text = run(capsys, "gc", store, "--keep", tmp_path / "mistyped", "--yes")
    assert code == 2 and (store / named).is_dir()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m shards merge ours theirs both" in capsys.readouterr().out
