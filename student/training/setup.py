"""From parameters to everything a training run starts from: configurations, data, identity, the student."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from student.data.cache import open_images
from student.data.dataset import PairDataset, Release
from student.data.pairs import Pairs, TrainDataError, data_fingerprint, read_pairs, read_release
from student.files import flush
from student.model import WEIGHTS, Student
from student.network.config import ModelConfig
from student.params import ParamsError, Paths, load_section, load_sections
from student.sections import StudentParams
from student.training.checkpoints import CheckpointError
from student.training.config import TrainConfig, check_losses, run_identity
from student.training.kmeans import kmeans


@dataclass(frozen=True)
class Job:
    """One run's inputs, read and checked."""

    paths: Paths
    config: TrainConfig
    model: ModelConfig
    pairs: Pairs
    val: Pairs
    release: Release | None
    """None where nothing needs the teacher."""

    @cached_property
    def data_sha256(self) -> str:
        return data_fingerprint(self.pairs, self.release)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the run's numbers, flat; see `run_identity`."""
        return run_identity(self.config, self.model, data=self.data_sha256, init_from=self._init_sha256())

    def _init_sha256(self) -> str | None:
        source = self.config.init_from
        if source is None or not Path(source).is_dir():
            return source
        weights = Path(source) / WEIGHTS
        if not weights.is_file():
            raise ParamsError(f"train.init_from = {source}: it has no {WEIGHTS}")
        return hashlib.sha256(weights.read_bytes()).hexdigest()

    @property
    def last_step(self) -> int:
        return min(self.config.max_steps, self.config.stop_at_step or self.config.max_steps)

    def priors(self) -> np.ndarray:
        """Embeddings of the distinct clean training images that have one, [M, D]."""
        if self.release is None:
            return np.zeros((0, self.model.prompt_dim), np.float32)
        vectors, found = self.release.lookup(sorted(set(self.pairs.gt_sha256)))
        return np.asarray(vectors)[np.asarray(found, dtype=bool)]

    def count_priors(self) -> int:
        """Training rows that have a prior."""
        return 0 if self.release is None else int(np.sum(self.release.lookup(list(self.pairs.gt_sha256))[1]))

    def dataset(self) -> PairDataset:
        config = self.config
        pairs, mode = self.pairs, config.cache_images
        images = open_images(mode, pairs.files, config.cache_dir, self.data_sha256, pairs.ranges)
        return PairDataset(
            self.pairs, self.release, config.patch_size, config.seed, config.augment, images, config.shuffle_priors
        )


def open_job(params: dict[str, Any], init_from: str | None = None) -> Job:
    """Validate the sections and read index and release; raises `ParamsError` or `TrainDataError`, one line each."""
    if init_from is not None:
        params = params | {"train": (params.get("train") or {}) | {"init_from": init_from}}
    checked = load_sections(StudentParams, params)
    paths, config = checked.paths, checked.train
    section = dict(params.get("model") or {})
    follows_release = section.get("prompt_dim", ...) is None
    needs_release = bool(config.losses.align) or section.get("domain_init") == "kmeans" or follows_release
    release = read_release(paths.release) if needs_release else None
    if follows_release:
        section["prompt_dim"] = release.dim
    model = load_section(ModelConfig, "model", params | {"model": section})
    if wrong := check_losses(config, model):
        pool = "model.domain_pool" if model.has_prompts else "model.task_pool or model.domain_pool"
        raise ParamsError(f"{', '.join(wrong)}: these losses need {pool}; set them to 0 or the pool to true")
    if config.losses.align and model.prompt_dim != release.dim:
        raise ParamsError(
            f"model.prompt_dim = {model.prompt_dim}, but the priors in {paths.release} have {release.dim} dimensions; "
            f"set model.prompt_dim: null to follow the release"
        )
    if config.init_from is not None and Path(config.init_from).resolve() == Path(paths.student).resolve():
        raise ParamsError(
            f"train.init_from = {config.init_from} is where this run writes (paths.student); copy it first: "
            f"cp -r {config.init_from} artifacts/student-before"
        )
    pairs, val = read_pairs(paths.index, "train"), read_pairs(paths.index, "val")
    if not len(pairs):
        raise TrainDataError(f"{paths.index}: no usable row of split train; run python -m pipeline.index --check")
    return Job(paths, config, model, pairs, val, release)


def make_accelerator(config: TrainConfig, out: Path) -> Accelerator:
    """Raises `ParamsError` for a precision or tracker that this machine does not have."""
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.grad_accumulation,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(str(out), logging_dir=str(out / "trackers")),
            kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
        )
    except (ValueError, ImportError) as error:
        raise ParamsError(f"train.mixed_precision or train.trackers: {' '.join(str(error).split())}") from None
    # Accelerate drops a tracker whose package is missing without a word.
    if missing := sorted(set(config.trackers) - {str(getattr(t, "value", t)) for t in accelerator.log_with}):
        raise ParamsError(f"train.trackers: {missing[0]} is not installed: pip install {missing[0]}, or leave it out")
    return accelerator


def build_student(job: Job) -> Student:
    """The student that step 0 starts from, the same on every process."""
    torch.manual_seed(job.config.seed)
    if job.config.init_from is None:
        student = Student(job.model)
        if job.model.domain_pool and job.model.domain_init == "kmeans":
            student.init_domain_pool(kmeans(job.priors(), job.model.domain_pool_size, seed=job.config.seed))
        return student
    try:
        student = Student.from_pretrained(job.config.init_from)
    except (OSError, ValueError, RuntimeError) as error:
        raise ParamsError(f"train.init_from = {job.config.init_from}: {' '.join(str(error).split())}") from None
    free = {"domain_init", "zero_init_output", "activation_checkpointing", "dropout", "selection_noise"}
    old, new = (config.model_dump() for config in (student.config, job.model))
    if differing := [
        f"model.{key} {old[key]} there, {new[key]} here" for key in old if old[key] != new[key] and key not in free
    ]:
        raise ParamsError(f"train.init_from = {job.config.init_from} is another network: {'; '.join(differing)}")
    fresh = Student(job.model)
    fresh.load_state_dict(student.state_dict())
    return fresh


def publish(weights: dict[str, torch.Tensor], job: Job, details: dict[str, Any]) -> None:
    """Write config.json, model.safetensors and the model card into `paths.student`, each whole or not at all."""
    student = Student(job.model)
    student.load_state_dict(weights)
    out = Path(job.paths.student)
    temporary = out / ".publishing"
    shutil.rmtree(temporary, ignore_errors=True)
    student.save_pretrained(temporary, model_card_kwargs=details)
    for name in ("config.json", "README.md", WEIGHTS):
        flush(temporary / name)
        os.replace(temporary / name, out / name)
    shutil.rmtree(temporary)


def published(job: Job) -> bool:
    return all((Path(job.paths.student) / name).is_file() for name in ("config.json", "README.md", WEIGHTS))


class RunLock:
    """Held by the one process that writes a run's directory; the kernel frees it however that process ends."""

    def __init__(self, out: Path):
        import fcntl

        out.mkdir(parents=True, exist_ok=True)
        self._file = open(out / ".lock", "a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            raise CheckpointError(f"{out}: process {holder} is training here; wait for it, or: kill {holder}") from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()
