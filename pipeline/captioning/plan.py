"""What is left to caption: the index minus the store."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.decode import Job
from pipeline.captioning.store import PerspectiveStore
from teacher.identity import caption_identity, resolve_model


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
