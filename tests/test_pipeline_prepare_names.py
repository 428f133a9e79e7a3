"""Preparations of folders as people have them: one name with two endings, outputs among the inputs, odd names."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import prepare


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    Image.new("RGB", (16, 16), "red").save("in/a.png")
    return tmp_path


def test_two_inputs_never_share_an_output(folder, capsys):
    Image.new("RGB", (16, 16), "blue").save("in/a.bmp")
    for _ in range(2):  # also where one of them is done already
        assert prepare.main(["crop", "in", "out"]) == 1
        said = capsys.readouterr()
        assert "in/a.png: its outputs would be named as those of in/a.bmp; rename it" in said.err
        assert np.asarray(Image.open("out/a.png"))[0, 0].tolist() == [0, 0, 255]
    assert "0 done, 1 were there, 1 faults" in said.out


def test_outputs_do_not_become_inputs(folder, capsys):
    assert prepare.main(["crop", "in", "in/cropped"]) == 1
    assert "in/cropped: is where the inputs lie" in capsys.readouterr().err and os.listdir("in") == ["a.png"]


def test_a_name_that_is_no_text(folder):
    os.rename("in/a.png", "in/caf\udce9.png")
    assert prepare.main(["noise", "in", "out"]) == 0
    assert "caf\udce9.png" in os.listdir("out")
