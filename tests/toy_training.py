"""A tiny real training set-up for tests: PNG pairs, an index, a caption release, and a student of 50 k parameters."""

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image
from processes import free_port

from shards import write_release
from student.training.config import LossWeights

TERMS = tuple(LossWeights.model_fields)
ROOT = Path(__file__).resolve().parents[1]
DIM = 32
DATASETS = {
    "natural_denoising": ("natural", "denoising", 7),
    "natural_deraining": ("natural", "deraining", 5),
    "medical_denoising": ("medical", "denoising", 4),
}
MODEL = {
    "width": 8, "encoder_blocks": [1, 1], "latent_blocks": 1, "decoder_blocks": [1, 1], "refinement_blocks": 0,
    "heads": [1, 2, 4], "task_pool_size": 4, "task_top_k": 2, "domain_pool_size": 4, "domain_top_k": 2,
    "prompt_dim": None,
}  # fmt: skip
TRAIN = {
    "max_steps": 12, "batch_size": 6, "patch_size": 16, "lr": 1e-3, "mixed_precision": "no", "num_workers": 0,
    "cache_images": "memory", "save_every": 4, "val_every": 6, "val_images": 1, "log_every": 1, "trackers": [],
}  # fmt: skip
STILL = {"dropout": 0.0, "selection_noise": 0.0}
"""A model with nothing random in its forward pass."""


def make_data(folder: Path, datasets: dict = DATASETS, seed: int = 0) -> None:
    """index.parquet, release/ and the images under `folder`; gt of "deraining" on disk, of "denoising" on the fly."""
    rows, priors = [], {}
    domains = sorted({domain for domain, _, _ in datasets.values()})
    for name, (domain, task, count) in datasets.items():
        rng = np.random.default_rng([seed, len(name), count])
        for split, number in (("train", count), ("val", 2)):
            for i in range(number):
                gt_path = folder / name / split / "gt" / f"{i}.png"
                lq_path = folder / name / split / "lq" / f"{i}.png" if task == "deraining" else None
                gt = smooth_image(rng, 24 + 4 * (i % 3), 20 + 4 * (i % 2))
                save_png(gt_path, gt)
                if lq_path:
                    save_png(lq_path, gt * 0.6 + 0.2)
                sha256 = hashlib.sha256(gt_path.read_bytes()).hexdigest()
                priors[sha256] = np.eye(DIM)[domains.index(domain)] + 0.1 * rng.standard_normal(DIM)
                rows.append(index_row(name, domain, task, split, gt_path, lq_path, sha256, gt.shape))
    parquet.write_table(pa.Table.from_pylist(rows), folder / "index.parquet")
    write_priors(folder / "release", priors)


def beside(data: Path, folder: Path) -> Path:
    """Another place for a run on the same data: `folder`, made if it is not there."""
    folder.mkdir(exist_ok=True)
    for name in ("index.parquet", "release"):
        (folder / name).symlink_to(data / name)
    return folder


def smooth_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """[H, W, 3] in [0, 1]: a few waves, so that there is something to restore."""
    y, x = (side[..., None] for side in np.mgrid[:height, :width])
    frequency, phase = rng.uniform(0.1, 0.6, (2, 3)), rng.uniform(0, 6, 3)
    return 0.5 + 0.4 * np.sin(y * frequency[0] + x * frequency[1] + phase)


def save_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(path)


def index_row(dataset, domain, task, split, gt_path, lq_path, sha256, shape, sigma=25) -> dict:
    degradation = None if lq_path else json.dumps({"kind": "gaussian_noise", "sigma": sigma})
    return {
        "dataset": dataset, "domain": domain, "task": task, "split": split, "gt_path": str(gt_path),
        "lq_path": str(lq_path) if lq_path else None, "degradation": degradation, "gt_sha256": sha256,
        "width": shape[1], "height": shape[0], "mode": "RGB", "status": "ok", "error": None,
    }  # fmt: skip


def write_priors(folder: Path, priors: dict[str, np.ndarray]) -> None:
    """A release whose embeddings are `priors`, sha256 → [D]."""
    rows = [
        {
            "image_sha256": sha256, "width": 20, "height": 24, "embedding": vector / np.linalg.norm(vector),
            "captions": [{"perspective": "content", "text": "waves", "n_tokens": 1, "finish_reason": "eos"}],
        }
        for sha256, vector in sorted(priors.items())
    ]  # fmt: skip
    write_release(
        folder, rows, [], teacher={"model": "toy"}, embedder={"model": "toy"}, fingerprints={"content": "0" * 64},
        teacher_fingerprint="0" * 64, dim=len(next(iter(priors.values()))),
    )  # fmt: skip


def params(folder: Path, model: dict | None = None, **train) -> dict:
    """Parameters as `read_params` returns them, reading and writing under `folder`."""
    paths = {"index": folder / "index.parquet", "release": folder / "release", "student": folder / "student"}
    section = TRAIN | {"cache_dir": str(folder / "cache")} | train
    return {"paths": {key: str(path) for key, path in paths.items()}, "model": MODEL | (model or {}), "train": section}


def write_params(folder: Path, name: str = "params.yaml", model: dict | None = None, **train) -> Path:
    file = folder / name
    file.write_text(json.dumps(params(folder, model, **train)))  # JSON is YAML
    return file


def start(
    folder: Path, model: dict | None = None, processes: int = 1, name: str = "params", before=None, **train
) -> list:
    """Start training in processes of its own, as torchrun would; several are one gloo group. Each calls `before`, a
    function of a module, first. Their output goes to `folder`/NAME-RANK.txt.

    They come from a server that has already imported everything, and so begin within a second.
    """
    context, preload = multiprocessing.get_context("forkserver"), ["student.training.run", "student.train"]
    if forkserver._forkserver._preload_modules != preload:
        forkserver._forkserver._stop()  # one that has imported other things may run
        context.set_forkserver_preload(preload)
    file = write_params(folder, f"{name}.yaml", model, **train)
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(processes):
        env = group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(context.Process(target=_train, args=(file, folder / f"{name}-{rank}.txt", env, before)))
        started[-1].start()
    return started


def finish(processes: list, code: int = 0) -> None:
    """Wait for processes of `start` and check how they ended."""
    for process in processes:
        process.join(timeout=600)  # a busy machine is no failure
    if alive := [process for process in processes if process.is_alive()]:
        for process in alive:
            process.kill()
        raise AssertionError(f"{len(alive)} of {len(processes)} training processes did not end")
    assert [process.exitcode for process in processes] == [code] * len(processes)


def wait_for_rows(out: Path, count: int, process) -> None:
    """Return when log.jsonl holds `count` rows or the process has ended."""
    while process.is_alive() and not ((out / "log.jsonl").exists() and len(log_rows(out)) >= count):
        time.sleep(0.005)


def _train(file: Path, output: Path, env: dict[str, str], before) -> None:
    import torch

    from student.train import main

    os.environ.update(env | {"ACCELERATE_USE_CPU": "1"})
    torch.set_num_threads(1)
    with open(output, "a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    if before:
        before()
    sys.exit(main(["--params", str(file)]))


def run_here(folder: Path, model: dict | None = None, **train) -> Path:
    """Train in this process, which is quicker than `launch`; returns the student's directory."""
    from accelerate.state import AcceleratorState

    from student.train import train as run
    from student.training.setup import open_job

    AcceleratorState._reset_state(reset_partial_state=True)
    run(open_job(params(folder, model, **train)), time.monotonic())
    return folder / "student"


def log_rows(out: Path, key: str = "loss") -> list[dict]:
    """The rows of log.jsonl that have `key`."""
    lines = (out / "log.jsonl").read_text().splitlines(keepends=True)
    return [row for line in lines if line.endswith("\n") and key in (row := json.loads(line))]


def losses(out: Path) -> list[dict]:
    """The rows of log.jsonl without what the clock decides."""
    clock = ("images_per_second", "data_wait_fraction")
    return [{k: v for k, v in row.items() if k not in clock} for row in log_rows(out)]


def assert_losses_near(rows: list[dict], expected: list[dict], near: float, terms: Iterable[str] = TERMS) -> None:
    for row, other in zip(rows, expected, strict=True):
        for term in terms:
            assert abs(row[f"loss_{term}"] - other[f"loss_{term}"]) <= near, (row["step"], term)


def weights(folder: Path) -> dict:
    """The tensors of a student's directory or of a checkpoint."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def newest(out: Path) -> Path:
    """The newest checkpoint of a student's directory that holds one run."""
    return max((out / "checkpoints").glob("*/step-*"))


def same(one: dict, other: dict) -> bool:
    """Whether two dictionaries of tensors are equal bit for bit."""
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
