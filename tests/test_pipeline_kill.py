"""Real processes, real SIGKILLs: a run may die at any moment, and the next one does exactly what is missing."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from hostile_images import make_hostile_images
from toy_project import Project

from pipeline import caption as stage

OFTEN = ["--set", "caption.flush_images=4", "--set", "caption.quantization=none", "--set", "caption.max_new_tokens=4"]


def parts(project: Project) -> list[Path]:
    return list(project.root.glob("store/*/part-*.parquet"))


def whole(project: Project) -> int:
    """Images that have both perspectives: a process may die between the two."""
    return sum(n == 2 for n in Counter(image for image, _ in project.store_rows()).values())


def wait_for_parts(project: Project, process: subprocess.Popen, number: int) -> None:
    deadline = time.monotonic() + 300
    while len(parts(project)) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Project(tmp_path, 120)


def test_a_second_captioner_is_refused_and_sigkill_loses_at_most_the_unflushed_part(project, capsys):
    process = project.start("caption", *OFTEN)
    wait_for_parts(project, process, 6)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(SystemExit, match="store: another process captions into it; wait for it"):
        stage.main(OFTEN)
    kill(process)
    kept = {part: part.read_bytes() for part in parts(project)}
    done = whole(project)
    assert 0 < done < 120, "killed too late to prove anything"
    stage.main(OFTEN)
    assert f"{120 - done} new of 120 images × 2 perspectives" in capsys.readouterr().out
    assert len(project.captions()) == 240  # fails on a doubled row
    assert all(part.read_bytes() == content for part, content in kept.items()), "a finished part was touched"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_polite_signal_flushes_everything_finished(project, number):
    process = project.start(
        "caption", *OFTEN, "--set", "caption.flush_images=1000", "--set", "caption.flush_seconds=0.3"
    )
    wait_for_parts(project, process, 1)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1
    (line,) = [line for line in error.splitlines() if line.startswith("caption: ")]
    assert f"stopped by {number.name}" in line and "Traceback" not in error
    kept = len(project.captions()) // 2
    assert 0 < kept < 120 and f": {kept} of 120 images done and kept" in line
    assert not [path for path in project.root.glob("store/*/.*")]


def test_hostile_files_end_with_one_row_each(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path, 0)
    expected = make_hostile_images(tmp_path / "hostile")
    shas = {project.add(f"hostile/{name}", 0, (tmp_path / "hostile" / name).read_bytes()): name for name in expected}
    project.write_index()
    stage.main([])
    assert "60 new of 60 images × 2 perspectives" in capsys.readouterr().out
    found = {}
    for (sha256, _), (_, _, _, status, error) in project.captions().items():
        found[shas[sha256]] = "ok" if status == "empty" else status
        assert (error is None) == (status in ("ok", "empty"))
    assert found == expected and len(project.captions()) == 120


@pytest.mark.slow
def test_kills_at_random_moments_equal_an_uninterrupted_run(tmp_path, monkeypatch):
    """2,000 small images; every process dies somewhere between its first second and its first few hundred images.

    20 kills; KILLS=100 in the environment makes it 100, in about 20 minutes.
    """
    kills = int(os.environ.get("KILLS", 20))
    monkeypatch.chdir(tmp_path)
    settings = [*OFTEN, "--set", f"caption.flush_images={400 // kills}"]
    whole = Project(tmp_path / "whole", 2000)
    monkeypatch.chdir(whole.root)
    stage.main(settings)
    killed = Project(tmp_path / "killed", 2000)
    rng, interrupted = random.Random(0), 0
    for _ in range(kills):
        process = killed.start("caption", *settings)
        if rng.random() < 0.8:
            wait_for_parts(killed, process, len(parts(killed)) + 1)
            time.sleep(rng.uniform(0, 6 / kills))
        else:
            time.sleep(rng.uniform(0, 4))
        kill(process)
        interrupted += len(killed.store_rows()) < 4000
    assert interrupted == kills
    monkeypatch.chdir(killed.root)
    stage.main(settings)
    assert len(killed.captions()) == 4000 and killed.captions() == whole.captions()
