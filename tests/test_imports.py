"""Who may import whom (docs: architecture), by walking every import statement of every room."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = ("shards", "teacher", "student", "pipeline")
TORCH_FREE = (
    "student.params student.sections student.progress student.files student.images student.data.pairs "
    "student.data.degradations student.network.config student.training.config student.evaluation.config "
    "student.evaluation.paper_numbers"
).split()
"""What `pipeline` may see of `student`."""


def imports(source: str) -> Iterator[str]:
    """Dotted names of all modules that `source` imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: name the room"
            # `from student import model` names a module as well as `from student.model import Student` does.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(room: str, file: str, source: str) -> list[str]:
    """Imports in `room`/`file` that the rules forbid."""
    forbidden = []
    for name in imports(source):
        other = name.split(".")[0]
        if room == "shards" and other not in {"shards", "numpy", "pyarrow", *sys.stdlib_module_names}:
            forbidden.append(name)
        if other not in ROOMS or other == room:
            continue
        allowed = {
            "shards": False,
            "teacher": False,
            "student": other == "shards" and file.startswith("data/"),
            "pipeline": other != "student" or any(f"{name}.".startswith(f"{free}.") for free in TORCH_FREE),
        }
        if not allowed[room]:
            forbidden.append(name)
    return forbidden


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room):
    files = sorted((REPOSITORY / room).rglob("*.py"))
    assert files
    found = {
        str(f.relative_to(REPOSITORY)): violations(
            room, f.relative_to(REPOSITORY / room).as_posix(), f.read_text(encoding="utf-8")
        )
        for f in files
    }
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("room", "file", "source"),
    [
        ("shards", "reader.py", "import torch"),
        ("shards", "reader.py", "def f():\n    import pandas as pd"),
        ("shards", "reader.py", "from teacher.identity import fingerprint"),
        ("teacher", "llava/captioner.py", "import shards"),
        ("teacher", "llava/captioner.py", "from pipeline import caption"),
        ("student", "model.py", "from shards import open_release"),
        ("student", "data/pairs.py", "from teacher.embedder import Embedder"),
        ("student", "data/pairs.py", "import pipeline.params"),
        ("pipeline", "embed.py", "from student.model import Student"),
        ("pipeline", "embed.py", "from student import train"),
        ("pipeline", "embed.py", "import student"),
        ("pipeline", "embed.py", "if True:\n    from student import params, model"),
    ],
)
def test_the_check_can_fail(room, file, source):
    assert violations(room, file, source)


@pytest.mark.parametrize(
    ("room", "file", "source"),
    [
        ("shards", "reader.py", "import json\nimport numpy as np\nimport pyarrow.parquet\nfrom shards.schema import A"),
        ("student", "data/pairs.py", "from shards import open_release"),
        ("pipeline", "params.py", "from student.training.config import TrainConfig\nfrom student import params"),
        ("pipeline", "embed.py", "import shards\nfrom teacher.identity import fingerprint"),
    ],
)
def test_the_check_does_not_cry_wolf(room, file, source):
    assert violations(room, file, source) == []


def test_no_file_of_student_hides_a_module_that_anybody_imports():
    """`accelerate launch student/train.py` puts `student/` first on `sys.path`."""
    for file in (REPOSITORY / "student").glob("[!_]*.py"):
        spec = find_spec(file.stem)
        assert spec is None, f"student/{file.name} hides {spec.origin}"
    assert find_spec("queue") and find_spec("datasets"), "the check can fail"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("shards", {"torch", "pandas", "yaml", "ruamel", "transformers", "pydantic", "student", "teacher"}),
        ("pipeline.caption", {"torch", "transformers", "datasets", "matplotlib", "sentence_transformers"}),
        ("pipeline.embed", {"torch", "transformers", "datasets", "matplotlib", "sentence_transformers"}),
        ("pipeline.captioning.decode", {"torch", "transformers", "pyarrow", "pydantic"}),
        ("student.images.files", {"torch", "pyarrow", "pydantic", "pydicom", "nibabel"}),
        ("student.restoration.paths", {"torch", "numpy", "PIL"}),
        ("teacher.identity", {"torch", "transformers"}),
        ("student.params", {"torch", "numpy", "pyarrow"}),
    ],
)
def test_light_modules_stay_light(module, heavy):
    probe = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert module.split(".")[0] in loaded and not loaded & heavy
