"""What is left to caption: the index minus the store."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.captioning.config import CaptionConfig
from pipeline.captioning.decode import Job
from pipeline.captioning.store import STATUSES, PerspectiveStore
from pipeline.indexing.table import BLOCK, Block, Index
from student.places import join, listed, read
from teacher.identity import library_versions

NAMED = 10


@dataclass
class Plan:
    """What a run has to do: counts, and the ranges of hashes in which something lacks."""

    missing: dict[str, int]
    """Images that each perspective lacks."""
    n_images: int = 0
    to_do: int = 0
    """Images that lack a caption."""
    ranges: list[tuple[str, str, int]] = field(default_factory=list)
    """`(low, high, images that lack a caption)`"""
    failed: Counter = field(default_factory=Counter)
    """Rows held that are no caption, by status."""
    errors: int = 0
    """Images held with status `error` that are not tried again ..."""
    error_paths: list[str] = field(default_factory=list)
    """... and where the first of them lie."""


def decoding(config: CaptionConfig) -> dict:
    """What the verdict that an image is bad depends on: when it changes, the image is tried again."""
    return {"max_pixels": config.max_pixels, **library_versions("pillow", "tifffile")}


class Lacking:
    """What a store lacks, range by range: never all images in memory."""

    def __init__(
        self,
        index: Index,
        stores: Mapping[str, PerspectiveStore],
        config: CaptionConfig,
        retry_errors: bool = False,
    ):
        self.index, self.stores, self.decoding, self.retry_errors = index, stores, decoding(config), retry_errors

    def plan(self, images: int = BLOCK) -> Plan:
        """Compare the index with the store by ranges of at most `images`."""
        plan = Plan(dict.fromkeys(self.stores, 0))
        for block in self.index.blocks(images):
            status, to_do = self._compare(block)
            plan.n_images += len(block)
            if lacking := int(to_do.any(axis=1).sum()):
                plan.ranges.append((block.low, block.high, lacking))
                plan.to_do += lacking
            for name, of_name in zip(self.stores, to_do.T, strict=True):
                plan.missing[name] += int(of_name.sum())
            held = np.where(to_do, -1, status)
            plan.failed.update({name: n for i, name in enumerate(STATUSES[1:], 1) if (n := int((held == i).sum()))})
            errors = np.flatnonzero((held == _ERROR).any(axis=1))
            plan.errors += len(errors)
            plan.error_paths += [block.paths(image)[0] for image in errors[: NAMED - len(plan.error_paths)]]
        return plan

    def jobs(self, ranges: Iterable[tuple]) -> Iterator[Job]:
        """The jobs of `ranges` (each begins with `low, high`), one range after the other.

        Within a range by missing perspectives, then sha256: batches ask the same questions, parts cover narrow ranges.
        """
        for low, high, *_ in ranges:
            block = self.index.block(low, high)
            to_do, names, images = self._compare(block)[1], list(self.stores), block.images
            jobs = [
                Job(images[image].as_py(), block.paths(image), tuple(names[i] for i in np.flatnonzero(to_do[image])))
                for image in np.flatnonzero(to_do.any(axis=1)).tolist()
            ]
            yield from sorted(jobs, key=lambda job: (job.perspectives, job.sha256))

    def _compare(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        """Status held, int `[images, perspectives]`, -1 for none; and bool of the same shape: to be captioned."""
        held = [
            pc.fill_null(pc.index_in(store.best(block.images, ["status"], self.decoding)["status"], _STATUSES), -1)
            for store in self.stores.values()
        ]
        status = np.stack([column.to_numpy() for column in held], axis=1)
        return status, (status < 0) | self.retry_errors & (status == _ERROR)


_STATUSES = pa.array(STATUSES)
_ERROR = STATUSES.index("error")


def earlier_rate(store_root: str | Path, model: str, quantization: str) -> float | None:
    """Captions a second of the latest run with this model, or None."""
    runs = join(store_root, "runs")
    for name in reversed(listed(runs, ".json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # of a run that was killed, or of somebody else
            run = json.loads(read(join(runs, name)))
            if (run["model"], run["quantization"]) == (model, quantization) and run["captions_per_second"]:
                return float(run["captions_per_second"])
    return None
