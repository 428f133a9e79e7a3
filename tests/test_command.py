"""`teachonce`: one word a command, from any folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.command import MODULES

COMMAND = str(Path(sys.executable).with_name("teachonce"))


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.mark.parametrize("verb", ["restore", "index", "shards"])
def test_a_folder_of_the_users_own_shadows_nothing(verb, tmp_path):
    for name in ("pipeline", "shards"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "student.py").write_text("raise SystemExit('shadowed')")
    done = run(verb, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert MODULES[verb] in done.stdout


def test_an_unknown_word_names_the_known_ones(tmp_path):
    done = run("trian", cwd=tmp_path)
    assert done.returncode == 1 and "no command 'trian'" in done.stderr and "train" in done.stderr


def test_a_missing_package_is_one_line_with_the_remedy(tmp_path):
    code = "import sys; sys.modules['PIL'] = None; sys.argv[:] = ['teachonce', 'samples']; import pipeline.command as c"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; c.main()"], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert 'pip install "teachonce[pipeline]"' in done.stderr


@pytest.mark.parametrize("words", ["--help", "shards --help"])
def test_a_reader_that_has_seen_enough_is_no_error(words, tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"(sleep 1; exec {COMMAND} {words}) 2>errors | true"],
        capture_output=True, text=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "errors").read_text() == "", done
