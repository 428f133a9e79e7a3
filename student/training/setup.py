"""From parameters to everything a training run starts from: configurations, data, identity, the student."""

import fcntl
import os
import shutil
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, ProjectConfiguration
from scipy.cluster.vq import kmeans2
from torch import Tensor

from student import files
from student.data.pairs import Pairs, Release, TrainDataError, data_fingerprint, read_pairs, read_release
from student.data.sampler import BalancedBatches
from student.model import WEIGHTS, Student
from student.network.config import ModelConfig
from student.params import ParamsError, Paths, load_section, load_sections
from student.sections import StudentParams
from student.training.checkpoints import CheckpointError, Checkpoints, sha256_of
from student.training.config import TrainConfig, losses_without_pool, run_identity

STUDENT_FILES = ("config.json", "README.md", WEIGHTS)


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
    def checkpoints(self) -> Checkpoints:
        """Those of the run that these inputs decide; see `run_identity`."""
        source = self.config.init_from
        if source is not None and Path(source).is_dir():
            if not (Path(source) / WEIGHTS).is_file():
                raise ParamsError(f"train.init_from = {source}: it has no {WEIGHTS}")
            source = sha256_of(Path(source) / WEIGHTS)
        data = data_fingerprint(self.pairs, self.release)
        return Checkpoints(self.paths.student, run_identity(self.config, self.model, data=data, init_from=source))

    @property
    def last_step(self) -> int:
        return min(self.config.max_steps, self.config.stop_at_step or self.config.max_steps)

    def batches(self, start: int, process: int, processes: int) -> BalancedBatches:
        """This process's share of the batches from step `start` to the last; raises `ParamsError`."""
        config, weights = self.config, dict(self.config.dataset_weights)
        if config.sampling == "concatenated":
            weights |= {name: weights.get(name, 1.0) * len(rows) for name, rows in self.pairs.by_dataset.items()}
        return BalancedBatches(
            self.pairs.by_dataset, config.batch_size, config.seed, weights,
            start, self.last_step, process, processes, config.grad_accumulation,
        )  # fmt: skip

    def priors(self) -> np.ndarray:
        """Embeddings of the distinct clean training images that have one, [M, D]."""
        if self.release is None:
            return np.zeros((0, self.model.prompt_dim), np.float32)
        vectors, found = self.release.lookup(sorted(set(self.pairs.gt_sha256)))
        return vectors[found]


def open_job(params: dict[str, Any], init_from: str | None = None) -> Job:
    """Validate the sections and read index and release; raises `ParamsError` or `TrainDataError`, one line each."""
    if init_from is not None:
        params = params | {"train": (params.get("train") or {}) | {"init_from": init_from}}
    checked = load_sections(StudentParams, params)
    paths, config = checked.paths, checked.train
    section = dict(params.get("model") or {})
    follows_release = section.get("prompt_dim", ...) is None
    needs_release = config.losses.align or section.get("domain_init") == "kmeans" or follows_release
    release = read_release(paths.release) if needs_release else None
    if release and follows_release:
        section["prompt_dim"] = release.dim
    model = load_section(ModelConfig, "model", params | {"model": section})
    if wrong := losses_without_pool(config.losses, model.domain_pool, model.has_prompts):
        raise ParamsError(wrong)
    if release and config.losses.align and model.prompt_dim != release.dim:
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


def make_accelerator(job: Job) -> Accelerator:
    """Raises `ParamsError` for a precision or tracker that this machine does not have."""
    config, out = job.config, Path(job.paths.student)
    trackers = out / "trackers" / job.checkpoints.folder.name
    try:
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.grad_accumulation,
            log_with=list(config.trackers) or None,
            project_config=ProjectConfiguration(str(out), logging_dir=str(trackers)),
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                # One process verifies the release and may decode images while the others wait.
                InitProcessGroupKwargs(timeout=timedelta(hours=6)),
            ],
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
            centroids_ND = kmeans(job.priors(), job.model.domain_pool_size, seed=job.config.seed)
            student.pools()["domain"].start_from(torch.from_numpy(centroids_ND))
        return student
    try:
        student = Student.from_pretrained(job.config.init_from)
    except (OSError, ValueError, RuntimeError) as error:
        raise ParamsError(f"train.init_from = {job.config.init_from}: {' '.join(str(error).split())}") from None
    free = {"domain_init", "zero_init_output", "activation_checkpointing", "dropout", "selection_noise"}
    old, new = (config.model_dump(exclude=free) for config in (student.config, job.model))
    if differing := [f"model.{key} {old[key]} there, {new[key]} here" for key in old if old[key] != new[key]]:
        raise ParamsError(f"train.init_from = {job.config.init_from} is another network: {'; '.join(differing)}")
    fresh = Student(job.model)
    fresh.load_state_dict(student.state_dict())
    return fresh


def kmeans(embeddings_MD: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` unit centroids [count, D] of unit rows [M, D]; the same result for the same seed.

    With fewer distinct rows than `count`, the remaining centroids are small perturbations of existing ones, since equal
    prompts would stay equal for ever. Raises ValueError without rows.
    """
    if len(embeddings_MD) == 0:
        raise ValueError("k-means needs at least one embedding row")
    random, rows_MD = np.random.default_rng(seed), _unit(np.asarray(embeddings_MD, dtype=np.float32))
    distinct = len(np.unique(rows_MD.round(6), axis=0))
    with warnings.catch_warnings(action="ignore"):  # an empty cluster keeps its place
        centroids_ND = _unit(kmeans2(rows_MD, min(count, distinct), iter=50, minit="++", seed=random)[0])
    near_XD = centroids_ND[random.integers(len(centroids_ND), size=count - len(centroids_ND))]
    moved_XD = near_XD + 0.1 * _unit(random.standard_normal(near_XD.shape, dtype=np.float32))
    return np.concatenate([centroids_ND, _unit(moved_XD)])


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def write_student(weights: dict[str, Tensor], job: Job, details: dict[str, str]) -> None:
    """Write config.json, model.safetensors and the model card into `paths.student`, each whole or not at all."""
    student = Student(job.model)
    student.load_state_dict(weights)
    if job.release:
        student.embedding_fingerprint = job.release.manifest["embedding_fingerprint"]
    out, temporary = Path(job.paths.student), job.checkpoints.folder / ".writing-student"
    student.save_pretrained(temporary, model_card_kwargs=details)
    for name in STUDENT_FILES:
        files.publish(temporary / name, out / name)
    shutil.rmtree(temporary)
    files.write_file(job.checkpoints.written, sha256_of(out / WEIGHTS))


def student_written(job: Job) -> bool:
    """Whether the student that this run wrote last still stands in `paths.student`."""
    out, mark = Path(job.paths.student), job.checkpoints.written
    whole = all(file.is_file() for file in (mark, *(out / name for name in STUDENT_FILES)))
    return whole and mark.read_text() == sha256_of(out / WEIGHTS)


def lock(out: Path) -> TextIO:
    """Held, while it is open, by the one process that writes a student's directory; the kernel frees it however that
    process ends. Raises `CheckpointError`, also for a folder whose files are somebody else's."""
    if theirs := next((out / name for name in STUDENT_FILES if (out / name).exists()), None):
        try:
            ModelConfig.model_validate_json((out / "config.json").read_bytes())
        except (OSError, ValueError):
            raise CheckpointError(f"{theirs} would be replaced, and is no student's: change paths.student") from None
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = open(out / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}; change paths.student") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        raise CheckpointError(f"{out}: process {holder} is training here; wait for it, or: kill {holder}") from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
