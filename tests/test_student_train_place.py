"""Where training cannot write, it says so in a line; what stops it otherwise is what its traceback shows."""

import pytest
import toy_training as toy

from student import train


def test_a_place_that_cannot_be_written_is_one_line(tmp_path, capsys):
    toy.make_data(tmp_path)
    (tmp_path / "student").write_text("")
    assert train.main(["--params", str(toy.write_params(tmp_path))]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "student: cannot be written" in said and "change paths.student" in said


def test_a_failure_before_there_is_a_student_shows_as_it_is(tmp_path, monkeypatch):
    toy.make_data(tmp_path)
    monkeypatch.setattr(train, "train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train.main(["--params", str(toy.write_params(tmp_path))])
