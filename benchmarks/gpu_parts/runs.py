"""Runs of student/train.py on made data, for benchmarks/gpu.py."""

import gc
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image

from shards import write_release

DATASETS = 6
TOY_MODEL = {
    "width": 8, "encoder_blocks": (1, 1, 1), "latent_blocks": 1, "decoder_blocks": (1, 1, 1), "refinement_blocks": 1,
    "task_pool_size": 4, "task_top_k": 2, "domain_pool_size": 4, "domain_top_k": 2, "prompt_dim": 32,
}  # fmt: skip


def make_data(folder: Path, images: int, side: int, dim: int) -> None:
    """`images` noise-on-waves PNG pairs in six datasets, their index and a release of random priors."""
    rng, rows, releases = np.random.default_rng(0), [], []
    y, x = (axis[..., None] for axis in np.mgrid[:side, :side])
    for i in range(images):
        waves = 0.5 + 0.3 * np.sin(x * rng.uniform(0.02, 0.3, 3) + y * rng.uniform(0.02, 0.3, 3))
        paths = [str(folder / f"{kind}{i}.png") for kind in ("gt", "lq")]
        for path, noise in zip(
            paths, (0.02, 0.1), strict=True
        ):  # a little noise: photographs do not compress to nothing
            pixels = (waves + noise * rng.standard_normal(waves.shape)).clip(0, 1)
            Image.fromarray(np.round(pixels * 255).astype(np.uint8)).save(path)
        sha256 = hashlib.sha256(Path(paths[0]).read_bytes()).hexdigest()
        name = f"set{i % DATASETS}"
        rows.append(
            {"dataset": name, "domain": name[:-1] + str(i % 3), "task": name, "split": "train", "gt_path": paths[0],
             "lq_path": paths[1], "degradation": None, "gt_sha256": sha256, "width": side, "height": side,
             "status": "ok"}
        )  # fmt: skip
        captions = [{"perspective": "content", "text": "waves", "n_tokens": 1, "finish_reason": "eos"}]
        vector = rng.standard_normal(dim)
        releases.append(
            {"image_sha256": sha256, "width": side, "height": side, "captions": captions,
             "embedding": vector / np.linalg.norm(vector)}
        )  # fmt: skip
    table = pa.Table.from_pylist(rows)
    position = table.schema.get_field_index("degradation")
    parquet.write_table(
        table.set_column(position, "degradation", pa.nulls(images, pa.string())), folder / "index.parquet"
    )
    write_release(
        folder / "release", sorted(releases, key=lambda row: row["image_sha256"]), [],
        teacher={"model": "none"}, embedder={"model": "none"},
        fingerprints={"content": "0" * 64}, teacher_fingerprint="0" * 64, dim=dim,
    )  # fmt: skip


def in_precision(device: str, precision: str) -> Any:
    """The autocast of "fp32", "tf32", "bf16" or "fp16"; sets whether products are in TF32, whose defaults differ."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device, dtype, enabled=precision in ("bf16", "fp16"))


def params(folder: Path, out: Path, model: dict, **train: Any) -> dict[str, Any]:
    paths = {"index": folder / "index.parquet", "release": folder / "release", "student": out}
    return {
        "paths": {key: str(path) for key, path in paths.items()},
        "model": model,
        "train": {"trackers": [], **train},
    }


def run(folder: Path, out: Path, model: dict, device: str, **train: Any) -> None:
    """student/train.py in this process."""
    from accelerate.state import AcceleratorState

    from student.train import train as run_job
    from student.training.setup import open_job

    os.environ["ACCELERATE_USE_CPU"] = str(int(device == "cpu"))
    AcceleratorState._reset_state(reset_partial_state=True)
    run_job(open_job(params(folder, out, model, **train)), time.monotonic())
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def log_rows(out: Path) -> list[dict]:
    return [row for line in (out / "log.jsonl").read_text().splitlines() if "loss" in (row := json.loads(line))]
