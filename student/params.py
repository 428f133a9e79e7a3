"""Parameters: `params.yaml` → frozen pydantic sections, with errors that name the remedy.

Every section class derives from `Section` and lives beside its owner. Only entry points call `read_params`.
"""

import argparse
import difflib
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

SECTIONS = ("paths", "samples", "index", "caption", "embed", "model", "train", "eval", "report", "prepare", "ablate")


class ParamsError(ValueError):
    """The parameters are wrong; the message names section, key, value and remedy."""


class Section(BaseModel):
    """One section of `params.yaml`: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Paths(Section):
    """Where each stage reads and writes, relative to the working directory. Written once, used everywhere."""

    samples: str = "artifacts/samples"
    index: str = "artifacts/index.parquet"
    hash_cache: str = "artifacts/hash_cache.sqlite"
    caption_store: str = "artifacts/caption_store"
    release: str = "artifacts/caption_shards"
    caption_stats: str = "artifacts/caption_stats.json"
    student: str = "artifacts/student"
    metrics: str = "artifacts/metrics.json"
    evaluation: str = "artifacts/evaluation"
    report: str = "artifacts/report"


AnySection = TypeVar("AnySection", bound=Section)


def add_params_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--params FILE` and `--set section.key=value` (repeatable) to an entry point.

    From here on its output never fails on a locale that lacks a letter of a file name, or an arrow: hours of work
    must not end with exit code 1 at their last line.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="default: params.yaml")
    about = "override one parameter, e.g. --set train.max_steps=10 (repeatable; the value is YAML)"
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help=about)


def read_params(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a parameter file and apply `section.key=value` overrides; raises `ParamsError`."""
    yaml = YAML(typ="safe", pure=True)  # reads YAML 1.2 as DVC does; PyYAML would read 4e-4 as a string
    try:
        params = yaml.load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{file}: no such parameter file; run from the repository or give --params FILE") from None
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise ParamsError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    params = {} if params is None else params  # an empty file: all defaults
    if not isinstance(params, dict):
        raise ParamsError(f"{file}: must be a mapping of sections {', '.join(SECTIONS)}, not {type(params).__name__}")
    for override in overrides:
        key, separator, text = override.partition("=")
        *parents, last = key.split(".")
        if not separator or not parents:
            raise ParamsError(f"--set {override}: must be SECTION.KEY=VALUE, e.g. --set train.max_steps=10")
        node = params
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise ParamsError(f"--set {override}: '{parent}' is a value, not a section")
        try:
            node[last] = yaml.load(text)
        except YAMLError as error:
            raise ParamsError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from error
    for name in params:
        if name not in SECTIONS:
            raise ParamsError(f"{file}: unknown section '{name}'{_nearest(str(name), SECTIONS)}")
    return params


def load_sections(cls: type[AnySection], params: dict[str, Any]) -> AnySection:
    """Validate the sections of `params` that `cls` has as fields (missing = all defaults); raises `ParamsError`."""
    return _validate(cls, {key: params[key] for key in cls.model_fields if params.get(key) is not None})


def load_section(cls: type[AnySection], name: str, params: dict[str, Any]) -> AnySection:
    """Validate section `name` of `params` as `cls` (missing section = all defaults); raises `ParamsError`."""
    return _validate(cls, params.get(name) or {}, name)


def _validate(cls: type[AnySection], values: Any, *prefix: str) -> AnySection:
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            location = [str(part) for part in detail["loc"]]
            what = f"{'.'.join([*prefix, *location])} = {detail['input']!r}"
            if detail["type"] == "extra_forbidden":
                lines.append(f"params: unknown key {what}{_nearest(location[-1], _keys_at(cls, location[:-1]))}")
            else:
                lines.append(f"params: {what}: {detail['msg']}")
        raise ParamsError("\n".join(lines)) from None


def _keys_at(cls: type[BaseModel], location: list[str]) -> list[str]:
    """Field names of the model that `location` leads to, through nested models, lists and unions."""
    models = [cls]
    for part in location:
        found = [model.model_fields[part].annotation for model in models if part in model.model_fields]
        models = [model for annotation in (found or models) for model in _models_in(annotation)]
    return [key for model in models for key in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]


def _nearest(word: str, choices: Sequence[str]) -> str:
    match = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean '{match[0]}'?" if match else f"; valid keys: {', '.join(choices)}"
