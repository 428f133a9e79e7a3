"""What the report reads, each file once and only when a section asks; what is not there raises `Missing`."""

import csv
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import shards
from pipeline.reporting.blocks import Missing
from pipeline.reporting.config import ReportConfig
from student.params import Paths

INDEX_COLUMNS = "dataset domain task split gt_path lq_path degradation gt_sha256 width height status".split()
INDEX, EMBED, TRAIN, EVAL = (
    "python -m pipeline.index",
    "python -m pipeline.embed",
    "accelerate launch student/train.py",
    "python -m student.eval",
)


@dataclass(frozen=True)
class Sample:
    """The images whose priors and captions the report looks at, sorted by sha256."""

    sha256s: list[str]
    domains: np.ndarray
    datasets: np.ndarray
    """An image of several data sets has their names joined by " + "."""
    of: int
    """Images in the release."""

    @property
    def rule(self) -> str:
        """How they were chosen, as a sentence."""
        if len(self.sha256s) == self.of:
            return f"All {self.of} images of the release."
        return (
            f"{len(self.sha256s)} of {self.of} images: the same number from each data set (all of a smaller one), "
            "those of the smallest sha256."
        )


class Inputs:
    """Lazy, cached access to every artifact."""

    def __init__(self, paths: Paths, config: ReportConfig, batch_size: int | None = None):
        self.paths, self.config, self.batch_size = paths, config, batch_size

    @cached_property
    def index(self) -> pa.Table:
        """All rows of the index."""
        return self._parquet(self.paths.index, INDEX_COLUMNS, INDEX)

    @cached_property
    def pairs(self) -> pa.Table:
        """The rows that training and evaluation use; there is at least one."""
        pairs = self.index.filter(pc.equal(self.index["status"], "ok"))
        if not len(pairs):
            raise Missing(f"{self.paths.index} has no usable row", f"{INDEX} --check")
        return pairs

    @cached_property
    def image_paths(self) -> dict[str, str]:
        """One path of every clean image, by sha256."""
        return dict(zip(self.pairs["gt_sha256"].to_pylist(), self.pairs["gt_path"].to_pylist(), strict=True))

    @cached_property
    def release(self) -> shards.Release:
        """The caption release."""
        try:
            return shards.open_release(self.paths.release)
        except (shards.ReleaseError, OSError) as error:
            raise Missing(f"no usable caption release: {error}", EMBED) from None

    @cached_property
    def sample(self) -> Sample:
        """At most `report.max_priors` images of the release."""
        groups: dict[str, set[str]] = defaultdict(set)
        domains: dict[str, str] = {}
        aliases = self.release.aliases().select(["dataset", "domain", "image_sha256"])
        for dataset, domain, sha256 in zip(*(column.to_pylist() for column in aliases.columns), strict=True):
            groups[dataset].add(sha256)
            domains[sha256] = min(domain, domains.get(sha256, domain))
        if not domains:
            raise Missing(f"{self.paths.release} does not say where its images come from", EMBED)
        chosen = choose({name: sorted(members) for name, members in groups.items()}, self.config.max_priors)
        labels = [" + ".join(name for name in sorted(groups) if sha256 in groups[name]) for sha256 in chosen]
        return Sample(chosen, np.array([domains[s] for s in chosen]), np.array(labels), len(self.release))

    @cached_property
    def vectors(self) -> np.ndarray:
        """The sample's priors, float32 `[n, dim]` of unit length."""
        return self.release.lookup(self.sample.sha256s)[0]

    @cached_property
    def captions(self) -> list[dict[str, str]]:
        """The sample's captions, perspective → text."""
        return [self.release.captions(sha256) for sha256 in self.sample.sha256s]

    @cached_property
    def caption_stats(self) -> dict[str, Any]:
        return self._json(self.paths.caption_stats, EMBED)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Every row of the training log; half a line at its end, of a process that was killed, is left out."""
        file = Path(self.paths.student) / "log.jsonl"
        try:
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        except (OSError, ValueError) as error:
            raise Missing(f"{file}: {_reason(error)}", TRAIN) from None
        if not rows:
            raise Missing(f"{file} has no row yet", TRAIN)
        return rows

    @cached_property
    def student_config(self) -> dict[str, Any]:
        return self._json(Path(self.paths.student) / "config.json", TRAIN)

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Keys of the pools and gates of the blocks; the rest of the weights stays on disk."""
        import safetensors

        file = Path(self.paths.student) / "model.safetensors"
        try:
            with safetensors.safe_open(file, framework="numpy") as tensors:
                wanted = [name for name in tensors.keys() if name.endswith(("keys_ND", "fusion.gate"))]  # noqa: SIM118
                return {name: tensors.get_tensor(name) for name in wanted}
        except (OSError, safetensors.SafetensorError) as error:
            raise Missing(f"{file}: {_reason(error)}", TRAIN) from None

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return self._json(self.paths.metrics, EVAL)

    @cached_property
    def results(self) -> dict[str, Any]:
        """The evaluation's full account."""
        results = self._json(Path(self.paths.evaluation) / "results.json", EVAL)
        if not isinstance(results, dict) or not isinstance(results.get("datasets"), dict):
            raise Missing(f"{self.paths.evaluation}/results.json has another form", EVAL)
        return results

    @cached_property
    def image_gains(self) -> dict[str, list[float]]:
        """PSNR gain of every evaluated image, by task."""
        file = Path(self.paths.evaluation) / "per_image.csv"
        gains: dict[str, list[float]] = defaultdict(list)
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                for row in csv.DictReader(lines):
                    gains[row["task"]].append(float(row["psnr_gain"]))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise Missing(f"{file}: {_reason(error)}", EVAL) from None
        if not gains:
            raise Missing(f"{file} has no row", EVAL)
        return gains

    def _json(self, file: str | Path, command: str) -> Any:
        try:
            return json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Missing(f"{file}: {_reason(error)}", command) from None

    def _parquet(self, file: str | Path, columns: list[str], command: str) -> pa.Table:
        try:
            return pq.read_table(file, columns=columns, partitioning=None, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            raise Missing(f"{file}: {_reason(error)}", command) from None


def choose(groups: dict[str, list[str]], limit: int) -> list[str]:
    """At most `limit` distinct members, sorted: the same number of the smallest of each sorted group, or all of it."""
    low, high = 0, max(map(len, groups.values()), default=0)
    while low < high:  # the largest share with which all groups fit
        share = (low + high + 1) // 2
        fits = sum(min(share, len(members)) for members in groups.values()) <= limit
        low, high = (share, high) if fits else (low, share - 1)
    # More groups than `limit`: one member of each of the first ones.
    chosen = {member for members in groups.values() for member in members[: max(low, 1)]}
    return sorted(sorted(chosen)[:limit])


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "not there yet"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
