"""What the caption stage does when memory ends for good, and when `pipeline.caption FOLDER OUT` gets Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_project import Project

from pipeline import caption as stage
from teacher.llava.shared_prefix import SharedPrefixGenerator


def test_a_teacher_without_memory_for_one_image_ends_in_a_line(tmp_path, monkeypatch):
    project = Project(tmp_path)
    monkeypatch.chdir(project.root)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(SharedPrefixGenerator, "__call__", full)
    with pytest.raises(SystemExit, match="^caption: out of memory even with one image at a time.*is kept") as error:
        stage.main([])
    assert "\n" not in str(error.value)


def test_another_fault_of_the_device_is_not_called_a_lack_of_memory(tmp_path, monkeypatch):
    project = Project(tmp_path)
    monkeypatch.chdir(project.root)

    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(SharedPrefixGenerator, "__call__", broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        stage.main([])


STAGE = """#!{python}
import pathlib, signal, time
here = pathlib.Path("{here}")
def save(*_):
    time.sleep(2)  # the model's step and a store far away
    (here / "saved").write_text("")
    raise SystemExit(1)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
(here / "works").write_text("")
time.sleep(60)
"""


@pytest.mark.parametrize(("kill", "number"), [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_ctrl_c_and_a_scheduler_let_the_stage_save(tmp_path, kill, number):
    """A terminal tells the whole group, a scheduler the command alone."""
    (tmp_path / "photos").mkdir()
    stand_in = tmp_path / "python"
    stand_in.write_text(STAGE.format(python=sys.executable, here=tmp_path))
    stand_in.chmod(0o755)
    words = [str(tmp_path / "photos"), str(tmp_path / "captions")]
    command = f"import sys; sys.executable = {str(stand_in)!r}; from pipeline.caption import main; main({words})"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    started = subprocess.Popen([sys.executable, "-c", command], env=environment, start_new_session=True, stderr=-1)
    while not (tmp_path / "works").exists():
        assert started.poll() is None
        time.sleep(0.05)
    kill(started.pid, number)
    assert b"stopped; what is finished is kept" in started.communicate()[1]
    assert (tmp_path / "saved").exists() and started.returncode == 1
