"""The artifacts of a small run for tests of the report: real files in their real formats, made-up numbers."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.embedding.audit import audit
from pipeline.indexing.table import Index
from shards import open_release, write_release

TASKS = {
    "natural_sr_x4": "natural", "natural_deraining": "natural", "medical_sr_x4": "medical",
    "medical_denoising": "medical", "remote_sensing_sr_x4": "remote_sensing",
    "remote_sensing_cloud_removal": "remote_sensing",
}  # fmt: skip
SUBJECTS = {
    "natural": "a photograph of a <b>cat</b> on a sofa",
    "medical": "a magnetic resonance scan of a brain",
    "remote_sensing": "a satellite view of fields and rivers",
}
TONES = ("dark", "bright", "dull", "colourful", "sharp", "soft")
DIM = 32


def write_images(root: Path, per_task: int, rng: np.random.Generator) -> list[dict]:
    """Pairs on disk; returns the rows of the index."""
    rows = []
    for task, domain in TASKS.items():
        for number in range(per_task):
            split = "val" if number % 4 == 0 else "train"
            height, width = (int(side) for side in rng.integers(48, 80, 2))
            coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            gt = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            noise = rng.normal(0, 20, (height, width, 3))
            lq = Image.fromarray(np.clip(np.asarray(gt) + noise, 0, 255).astype(np.uint8))
            paths = {}
            for kind, image in (("gt", gt), ("lq", lq)):
                path = root / "images" / task / split / kind / f"{number:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
                paths[kind] = str(path.relative_to(root))
            sha256 = hashlib.sha256((root / paths["gt"]).read_bytes()).hexdigest()
            rows.append(
                {
                    "dataset": task, "domain": domain, "task": task, "split": split, "gt_path": paths["gt"],
                    "lq_path": paths["lq"], "degradation": None, "gt_sha256": sha256, "width": width,
                    "height": height, "mode": "RGB", "status": "ok", "error": None,
                }
            )  # fmt: skip
    rows.append({**rows[0], "status": "unreadable", "error": "truncated", "gt_path": "images/broken.png"})
    return rows


def release_rows(shas: dict[str, str], rng: np.random.Generator):
    """Rows for `write_release`, one an image: sha256 → domain."""
    centres = {domain: rng.normal(size=DIM) for domain in sorted(set(shas.values()))}
    for number, (sha256, domain) in enumerate(shas.items()):
        tone = TONES[number % len(TONES)]
        texts = {"content": f"The image shows {SUBJECTS[domain]}.", "brightness": f"The image is {tone}."}
        captions = [
            {"perspective": name, "text": text, "n_tokens": len(text) // 4, "finish_reason": "stop"}
            for name, text in texts.items()
        ]
        vector = centres[domain] + 0.5 * rng.normal(size=DIM)
        yield {"image_sha256": sha256, "width": 64, "height": 64, "captions": captions, "embedding": vector}


def write_toy_release(folder: Path, shas: dict[str, str], aliases: list[tuple], rng: np.random.Generator) -> None:
    """A sealed release."""
    fingerprints = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("content", "brightness")}
    rows = sorted(release_rows(shas, rng), key=lambda row: row["image_sha256"])
    both = hashlib.sha256(b"both").hexdigest()
    names = {"teacher": {"name": "toy teacher"}, "embedder": {"name": "toy embedder"}}
    write_release(folder, rows, aliases, fingerprints=fingerprints, teacher_fingerprint=both, dim=DIM, **names)


def write_log(file: Path, steps: int = 300) -> None:
    """A training log as student/train.py writes it."""
    rng = np.random.default_rng(1)
    rows = []
    for step in range(10, steps + 1, 10):
        decay = np.exp(-step / 100)
        loss = {"pixel": 0.02 + 0.1 * decay, "fft": 0.3 + decay, "align": 0.1 + decay, "diversity": 0.1 * decay}
        loss |= {"balance": 0.2 * decay, "contrastive": 1 + decay}
        loss = {f"loss_{name}": float(value * rng.uniform(0.9, 1.1)) for name, value in loss.items()}
        row = {"step": step, "lr": 4e-4 * (1 - step / steps), "loss": sum(loss.values()), **loss, "grad_norm": 0.5}
        rows.append(row | {"images_per_second": 20.0 + rng.normal(), "data_wait_fraction": 0.01})
        if step % 100 == 0:
            val = {t: {"psnr": 25 + step / 100, "psnr_input": 25.5, "psnr_gain": step / 100 - 0.5} for t in TASKS}
            rows.append({"step": step, "val": val})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 30')  # killed in mid-line


CHANGES = (
    (2.0, [1.0, 3.0]), (0.1, [-0.2, 0.4]), (-1.0, [-1.5, -0.5]), (None, None), (7.0, [6.0, 8.0]),
    (0.003, [0.002, 0.004]),
)  # fmt: skip
"""Mean and interval of each of the `TASKS`: shown, not shown, a loss, clean inputs, and twice shown."""


def write_evaluation(folder: Path) -> None:
    """What student.eval leaves, one data set a task."""
    (folder / "panels").mkdir(parents=True)
    for name in ("overview", *TASKS):
        Image.new("RGB", (120, 40), "navy").save(folder / "panels" / f"{name}.png")
    score = {"psnr": 30.5, "psnr_input": 29.25, "ssim": 0.9, "ssim_input": None, "n": 8}
    changes = [{"psnr_gain": mean, "psnr_gain_ci95": interval, "psnr_gain_least": mean} for mean, interval in CHANGES]
    sets = {task: score | change for task, change in zip(TASKS, changes, strict=True)}
    overall = score | {"psnr_gain": 1.62, "psnr_gain_ci95": [1.5, 1.75], "n": 48}
    results = {"variant": "basicsr", "model": {"weights_sha256": "5eed"}, "datasets": sets, "overall": overall}
    (folder / "results.json").write_text(json.dumps(results))


def write_run(root: Path, per_task: int = 4) -> Path:
    """A whole run below `root`; returns its params.yaml. Paths inside are relative to `root`."""
    rng = np.random.default_rng(0)
    rows = write_images(root, per_task, rng)
    artifacts = root / "artifacts"
    artifacts.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), artifacts / "index.parquet")
    good = [row for row in rows if row["status"] == "ok"]
    aliases = [(row["gt_path"], row["dataset"], row["domain"], row["gt_sha256"]) for row in good]
    write_toy_release(artifacts / "caption_shards", {row["gt_sha256"]: row["domain"] for row in good}, aliases, rng)
    perspective = {"prompt": "What is it?", "ok": len(good), "mean_tokens": 9.5, "error": 1}
    perspective |= {"cut_by_max_new_tokens": 2, "cut_by_embedder": 0}
    stats = {"images": len(good) + 1, "rows": len(good), "perspectives": {"content": perspective}}
    questions = {"content": "What is it?", "brightness": "How bright is it?"}
    stats["audit"] = audit(open_release(artifacts / "caption_shards"), Index(artifacts / "index.parquet"), questions)
    (artifacts / "caption_stats.json").write_text(json.dumps(stats))
    (artifacts / "student").mkdir()
    write_log(artifacts / "student" / "log.jsonl")
    write_evaluation(artifacts / "evaluation")
    params = root / "params.yaml"
    params.write_text("report: {max_priors: 200}\n")
    return params
