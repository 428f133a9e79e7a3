"""Experiments of an ablation in DVC's queue: what exists, what runs, what they measured."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ablation.config import AblateConfig
from student.params import ParamsError

EXECUTION = {"ablate", "report"}
"""Sections that change no experiment's numbers."""
WAITING = ("Queued", "Running")


class QueueError(ValueError):
    """DVC could not do what the ablation asked; one line with the remedy."""


@dataclass(frozen=True)
class Experiment:
    """One variant with one seed."""

    variant: str
    seed: int
    overrides: tuple[str, ...]
    digest: str

    @property
    def name(self) -> str:
        """The experiment's name in DVC. The digest is over all parameters and over the data, so that an experiment of
        other parameters is never taken for this one."""
        return f"ablate-{self.variant}-s{self.seed}-{self.digest}"


def experiments(config: AblateConfig, params: Mapping[str, Any], data: str) -> list[Experiment]:
    """All of them, seed by seed: an ablation that is stopped early has few seeds of everything. `data`: its hash."""
    base = {section: values for section, values in params.items() if section not in EXECUTION}
    found = []
    for seed in config.seeds:
        for name, variant in config.variants.items():
            overrides = (*variant.set, f"train.seed={seed}")
            text = json.dumps([base, overrides, data], sort_keys=True, default=str)
            found.append(Experiment(name, seed, overrides, hashlib.sha256(text.encode()).hexdigest()[:8]))
    return found


def data_hash(paths: Any) -> str:
    """sha256 of the index: which images there are. Captions follow from it and the parameters."""
    try:
        return hashlib.sha256(Path(paths.index).read_bytes()).hexdigest()
    except OSError:
        raise QueueError(f"{paths.index}: no index; run dvc repro index first") from None


def dvc(*arguments: str, show: bool = False, environment: Mapping[str, str] | None = None) -> str:
    """Run a DVC command; its output. Raises `QueueError` with DVC's own last line."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], capture_output=not show, text=True, env=environment
    )
    if done.returncode:
        reason = "see above" if show else (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise QueueError(f"dvc {' '.join(arguments[:3])} failed: {reason}")
    return done.stdout or ""


def copies(config: AblateConfig, paths: Any) -> list[str]:
    """Git-ignored folders to copy into every experiment's workspace; raises `ParamsError` if they are too large.

    DVC fills that workspace with what Git and its cache hold. Samples and caption store are neither (`persist: true,
    cache: false`): without a copy every experiment would make samples and captions anew.
    """
    wanted = config.copy_paths
    if wanted is None:
        wanted = [paths.samples, paths.caption_store]
    found = [path for path in wanted if Path(path).is_dir()]
    size = sum(file.stat().st_size for path in found for file in Path(path).rglob("*") if file.is_file()) / 1e9
    if size > config.max_copy_gb:
        raise ParamsError(
            f"{', '.join(found)}: {size:.1f} GB would be copied for every experiment, more than ablate.max_copy_gb "
            f"{config.max_copy_gb}; give index.root as an absolute path and leave the folder out of ablate.copy_paths"
        )
    return found


def start(jobs: int) -> None:
    """Start `jobs` workers, whose experiments run the code of their own workspace and share the cores.

    Without a PYTHONPATH an editable installation would lend them the code of this folder as it is at that moment.
    `MKL_NUM_THREADS` because `accelerate launch` overwrites the absence of `OMP_NUM_THREADS`, see `student/machine.py`.
    """
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    here = os.pathsep.join(filter(None, [".", os.environ.get("PYTHONPATH")]))
    environment = {"PYTHONPATH": here, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    dvc("queue", "start", "--jobs", str(jobs), environment={**os.environ, **environment})


def states() -> dict[str, str]:
    """Experiment name → Queued, Running, Success or Failed, by DVC's queue; names of older attempts give way."""
    from dvc.repo import Repo

    with Repo() as repo:
        return {entry["name"]: entry["status"] for entry in reversed(repo.experiments.celery_queue.status())}


def finished() -> set[str]:
    """Names of all experiments that DVC holds, of any commit."""
    return set(dvc("exp", "list", "--all-commits", "--name-only").split())


def enqueue(experiment: Experiment, copy: Iterable[str], target: str) -> None:
    """Put one experiment into DVC's queue."""
    # Hydra's ++ sets a key whether or not the file has it.
    changes = [part for override in experiment.overrides for part in ("-S", f"++{override}")]
    copied = [part for path in copy for part in ("-C", path)]
    dvc("exp", "run", "--quiet", "--queue", "--name", experiment.name, *copied, *changes, target)


def metrics(experiment: Experiment, file: str) -> dict[str, Any] | None:
    """The experiment's metrics.json, or None where it has none."""
    import dvc.api

    try:
        return json.loads(dvc.api.read(file, rev=experiment.name))
    except (OSError, ValueError):
        return None
