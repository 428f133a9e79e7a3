"""Who may import whom (docs: architecture), by walking every import statement of every room."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
from processes import ROOT as REPOSITORY
from processes import printed

ROOMS = ("shards", "teacher", "student", "pipeline")
TORCH_FREE = (
    "params sections progress files places images data.pairs data.degradations data.resize network.config "
    "training.config evaluation.config"
)
"""What `pipeline` may see of `student`."""


ALONE = {
    "network": "params",
    "images": "machine files places",
    "data": "files places images params",
    "training": "data model network files places params sections machine progress evaluation.metrics",
    "restoration": "data model network images files places machine progress",
    "evaluation": "data model images files places params progress",
}
"""What each room of `student` may see of the others: no room looks sideways into the insides of another."""


def imports(source: str) -> Iterator[str]:
    """Dotted names of all modules that `source` imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: name the room"
            # `from student import model` names a module as well as `from student.model import Student` does.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, modules: str) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules.split())


def allowed(package: str, file: str, name: str) -> bool:
    """Whether `package`/`file` may import `name`."""
    other, _, rest = name.partition(".")
    if package == "shards" and other not in ROOMS:
        return other in {"numpy", "pyarrow", *sys.stdlib_module_names}
    if package == other == "student":
        room = file.partition("/")[0]
        return room not in ALONE or within(rest, f"{room} {ALONE[room]}")
    if other not in ROOMS or other == package:
        return True
    if package == "student":
        return other == "shards" and file.startswith("data/")
    return package == "pipeline" and (other != "student" or within(rest, TORCH_FREE))


def violations(package: str, file: str, source: str) -> list[str]:
    return [name for name in imports(source) if not allowed(package, file, name)]


def cycles(sources: dict[str, str]) -> list[str]:
    """The modules of one import cycle among `sources`, module name -> source text."""
    graph = {}
    for module, source in sources.items():
        names = {name if name in sources else name.rpartition(".")[0] for name in imports(source)}
        graph[module] = names & sources.keys() - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_import_cycle_also_none_inside_functions():
    files = {f.relative_to(REPOSITORY).with_suffix(""): f for room in ROOMS for f in (REPOSITORY / room).rglob("*.py")}
    sources = {".".join(name.parts).removesuffix(".__init__"): f.read_text("utf-8") for name, f in files.items()}
    assert len(sources) > 100 and cycles(sources) == []
    hidden = {"a.x": "def f():\n    from a import y", "a.y": "import b", "b": "from a.x import f"}
    assert set(cycles(hidden)) == {"a.x", "a.y", "b"}, "the check can fail"


def test_folders_and_files_stay_small():
    tracked = [Path(name) for name in subprocess.check_output(["git", "ls-files"], text=True, cwd=REPOSITORY).split()]
    assert tracked
    in_folder = Counter(path.parent for path in tracked if path.parent != Path("tests"))
    assert {str(folder): n for folder, n in in_folder.items() if n > 16} == {}
    lines = {str(path): (REPOSITORY / path).read_text("utf-8").count("\n") for path in tracked if path.suffix == ".py"}
    assert {path: n for path, n in lines.items() if n > 260} == {}


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
        ("student", "data/pairs.py", "from student.training.config import TrainConfig"),
        ("student", "training/validation.py", "from student.restoration.restorer import Restorer"),
        ("student", "network/blocks.py", "from student.files import write_atomically"),
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
    loaded = set(printed(REPOSITORY, "-c", probe).split())
    assert module.split(".")[0] in loaded and not loaded & heavy
