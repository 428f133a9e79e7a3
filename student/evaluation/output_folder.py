"""Where an evaluation is written: what params.yaml asks for to the tracked paths, anything else beside them."""

import os
import re
from pathlib import Path
from typing import Any

from student.evaluation.config import EvalConfig
from student.params import Paths

NOT_RESULTS = ("panels", "resume")
"""Keys of `eval` that change no number."""

PLAIN = ("model", "split", "variant", "setting")
"""Keys whose value says in a folder's name what it is."""


def place(paths: Paths, config: EvalConfig, tracked: dict[str, Any], out: str | None = None) -> Paths:
    """`paths` with the metrics and the folder of this evaluation.

    paths.metrics and paths.evaluation belong to the stage `evaluate` of dvc.yaml and hold what the parameter file says
    (`tracked`: its content, without the command line). An evaluation of anything else, the input as a baseline or
    another split, is written to a folder beside that is named by what differs, evaluation-input; `out` names another.
    """
    changed = _changed(paths, config, tracked)
    if out is None and not changed:
        return paths
    folder = out or f"{paths.evaluation.rstrip('/')}-{'-'.join(changed)}"
    return paths.model_copy(update={"evaluation": folder, "metrics": str(Path(folder) / "metrics.json")})


def _changed(paths: Paths, config: EvalConfig, tracked: dict[str, Any]) -> list[str]:
    """What the command line changed, as parts of a folder's name."""
    section, student = tracked.get("eval") or {}, (tracked.get("paths") or {}).get("student", Paths().student)
    before = EvalConfig().model_dump() | section
    now = config.model_dump() | {"model": os.path.normpath(config.model or paths.student)}
    before["model"] = os.path.normpath(before["model"] or student)
    parts = []
    for key, value in now.items():
        if key in NOT_RESULTS or value == before[key]:
            continue
        text = re.sub(r"[^A-Za-z0-9_.]+", "-", "null" if value is None else str(value)).strip("-.")
        parts.append(text[-100:] if key in PLAIN and value is not None else f"{key}-{text}"[:100])
    return parts
