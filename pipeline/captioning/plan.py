"""What is left to caption: the index minus the store."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.decode import Job
from pipeline.captioning.store import PerspectiveStore
from teacher.identity import library_versions


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
    errors: set[str]
    """Images held with status `error` that are not tried again."""

    def share(self, rank: int, world_size: int) -> list[Job]:
        """The jobs of one process. Divided by image hash: any number of processes may go on where others stopped."""
        return [job for job in self.jobs if in_share(job.sha256, rank, world_size)]


def in_share(sha256: str, rank: int, world_size: int) -> bool:
    """Whether an image is the work of this process."""
    return int(sha256[:8], 16) % world_size == rank


def decoding(config: CaptionConfig) -> dict:
    """What the verdict that an image is bad depends on: when it changes, the image is tried again."""
    return {"max_pixels": config.max_pixels, **library_versions("pillow", "tifffile")}


def make_plan(
    images: Mapping[str, tuple[str, ...]],
    stores: Mapping[str, PerspectiveStore],
    config: CaptionConfig,
    retry_errors: bool = False,
) -> Plan:
    """Compare `images` with what `stores` hold."""
    lacking: dict[str, list[str]] = {}
    failed: Counter[str] = Counter()
    missing, errors = dict.fromkeys(stores, 0), set()
    for name, store in stores.items():  # one perspective in memory at a time: a million statuses are 200 MB
        held = store.statuses(decoding(config))
        for sha256 in images:
            status = held.get(sha256)
            if status is None or retry_errors and status == "error":
                lacking.setdefault(sha256, []).append(name)
                missing[name] += 1
            elif status != "ok":
                failed[status] += 1
                if status == "error":
                    errors.add(sha256)
    jobs = [Job(sha256, images[sha256], tuple(names)) for sha256, names in lacking.items()]
    jobs.sort(key=lambda job: (job.perspectives, job.sha256))
    return Plan(len(images), jobs, missing, failed, errors)


def earlier_rate(store_root: Path, model: str, quantization: str) -> float | None:
    """Captions a second of the latest run with this model, or None."""
    for path in sorted((Path(store_root) / "runs").glob("*.json"), reverse=True):
        with suppress(OSError, ValueError, KeyError, TypeError):  # of a run that was killed, or of somebody else
            run = json.loads(path.read_text(encoding="utf-8"))
            if (run["model"], run["quantization"]) == (model, quantization) and run["captions_per_second"]:
                return float(run["captions_per_second"])
    return None
