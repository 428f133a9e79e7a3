"""What is left to caption: the index minus the store."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.caption_config import CaptionConfig
from pipeline.caption_decode import Job
from pipeline.caption_store import PerspectiveStore
from teacher.identity import caption_identity, resolve_model

INDEX_COLUMNS = ["dataset", "domain", "gt_path", "gt_sha256", "status", "width", "height"]


class IndexUnusable(ValueError):
    """The index cannot be used; the message names the file and the remedy."""


def read_index(path: str | Path) -> pa.Table:
    """The usable rows of the index (`INDEX_COLUMNS`); raises `IndexUnusable`."""
    remedy = "run python -m pipeline.index first"
    try:
        table = pq.read_table(path, columns=INDEX_COLUMNS, partitioning=None)
    except FileNotFoundError:
        raise IndexUnusable(f"{path}: no index; {remedy}") from None
    except (pa.ArrowException, OSError) as error:
        raise IndexUnusable(f"{path}: not a readable index ({str(error).splitlines()[0]}); {remedy}") from None
    if missing := [name for name in INDEX_COLUMNS if name not in table.column_names]:
        raise IndexUnusable(f"{path}: not an index: no column {', '.join(missing)}; {remedy}")
    table = table.filter(pa.compute.equal(table["status"], "ok"))
    if not table.num_rows:
        raise IndexUnusable(f"{path}: holds no usable image; see python -m pipeline.index --check")
    return table


def images_of(index: pa.Table) -> dict[str, tuple[str, ...]]:
    """Distinct clean images (sha256 -> every path it lies at), ordered by sha256."""
    grouped = index.group_by("gt_sha256").aggregate([("gt_path", "distinct")])
    pairs = zip(grouped["gt_sha256"].to_pylist(), grouped["gt_path_distinct"].to_pylist(), strict=True)
    return {sha256: tuple(sorted(paths)) for sha256, paths in sorted(pairs)}


@dataclass(frozen=True)
class Plan:
    """What a run has to do, all processes together."""

    n_images: int
    jobs: list[Job]
    """Ordered by missing perspectives, then sha256: batches ask the same questions, and parts cover narrow ranges."""
    missing: dict[str, int]
    """Images that each perspective lacks."""
    failed: Counter
    """Rows held that are no caption, by status."""

    def share(self, rank: int, world_size: int) -> list[Job]:
        """The jobs of one process. Divided by image hash: any number of processes may go on where others stopped."""
        return [job for job in self.jobs if int(job.sha256[:8], 16) % world_size == rank]


def make_plan(
    images: Mapping[str, tuple[str, ...]], stores: Mapping[str, PerspectiveStore], retry_errors: bool
) -> Plan:
    """Compare `images` with what `stores` hold."""
    lacking: dict[str, list[str]] = {}
    missing, failed = dict.fromkeys(stores, 0), Counter()
    for name, store in stores.items():  # one perspective in memory at a time: a million statuses are 200 MB
        held = store.statuses()
        for sha256 in images:
            status = held.get(sha256)
            if status is None or retry_errors and status == "error":
                lacking.setdefault(sha256, []).append(name)
                missing[name] += 1
            elif status != "ok":
                failed[status] += 1
    jobs = [Job(sha256, images[sha256], tuple(names)) for sha256, names in lacking.items()]
    jobs.sort(key=lambda job: (job.perspectives, job.sha256))
    return Plan(len(images), jobs, missing, failed)


def earlier_rate(store_root: Path, model: str, quantization: str) -> float | None:
    """Captions a second of the latest run with this model, or None."""
    for path in sorted((Path(store_root) / "runs").glob("*.json"), reverse=True):
        run = json.loads(path.read_text(encoding="utf-8"))
        if (run["model"], run["quantization"]) == (model, quantization) and run["captions_per_second"]:
            return run["captions_per_second"]
    return None


def identities(config: CaptionConfig) -> dict[str, dict]:
    """What each perspective's fingerprint is the hash of (name -> identity). Loads no model."""
    source = resolve_model(config.model, config.revision)
    options = {key: getattr(config, key) for key in ("quantization", "max_new_tokens", "padding")}
    return {name: caption_identity(source, name, prompt, **options) for name, prompt in config.perspectives.items()}


def process_of_many() -> tuple[int, int]:
    """(rank, world size) as `accelerate launch`, `torchrun` or a shell loop export them; (0, 1) alone."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world_size}: the rank must be from 0 to WORLD_SIZE - 1")
    return rank, world_size
