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
import pyarrow.parquet as pq

import shards
from pipeline.reporting.blocks import Missing
from pipeline.reporting.config import ReportConfig
from pipeline.reporting.style import colours
from student.params import Paths

COLUMNS = "dataset domain task split gt_path lq_path degradation range gt_sha256 width height status".split()
INDEX, EMBED, TRAIN, EVAL = (
    "python -m pipeline.index",
    "python -m pipeline.embed",
    "accelerate launch student/train.py",
    "python -m student.eval",
)


@dataclass(frozen=True)
class Sample:
    """The images of the release that the report looks at, sorted by sha256; one place of each list an image."""

    sha256s: list[str]
    domains: np.ndarray
    datasets: np.ndarray
    """Of an image in several, the first by name."""
    vectors: np.ndarray
    """Priors, float32 `[n, dim]` of unit length."""
    captions: list[dict[str, str]]
    """Perspective → text."""
    rule: str
    """How they were chosen, as a sentence."""


class Inputs:
    """Lazy, cached access to every artifact."""

    def __init__(self, paths: Paths, config: ReportConfig):
        self.paths, self.config = paths, config

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """All rows of the index."""
        file = self.paths.index
        try:
            schema = pq.read_schema(file).names  # an index of version 0.1 has no `range`
            columns = [name for name in COLUMNS if name in schema or name != "range"]
            rows = pq.read_table(file, columns=columns, partitioning=None, page_checksum_verification=True)
            return rows.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise Missing(f"{file}: {_reason(error)}", INDEX) from None

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """The rows that training and evaluation use, by domain and data set; there is at least one."""
        pairs = [row for row in self.index if row["status"] == "ok"]
        if not pairs:
            raise Missing(f"{self.paths.index} has no usable row", f"{INDEX} --check")
        return sorted(pairs, key=lambda row: (row["domain"], row["dataset"]))

    @cached_property
    def clean(self) -> dict[str, dict[str, Any]]:
        """One row of every clean image, by sha256."""
        return {row["gt_sha256"]: row for row in self.pairs}

    @cached_property
    def sample(self) -> Sample:
        """At most `report.max_priors` images of the release."""
        groups: dict[str, set[str]] = defaultdict(set)
        domains: dict[str, str] = {}
        try:
            release = shards.open_release(self.paths.release)
            for row in release.aliases().select(["dataset", "domain", "image_sha256"]).to_pylist():
                groups[row["dataset"]].add(row["image_sha256"])
                domains[row["image_sha256"]] = min(row["domain"], domains.get(row["image_sha256"], row["domain"]))
            if not domains:
                raise Missing(f"{self.paths.release} does not say where its images come from", EMBED)
            chosen = choose({name: sorted(members) for name, members in groups.items()}, self.config.max_priors)
            datasets = [next(name for name in sorted(groups) if sha256 in groups[name]) for sha256 in chosen]
            rule = (
                f"All {len(release)} images of the release."
                if len(chosen) == len(release)
                else f"{len(chosen)} of {len(release)} images: the same number from each data set (all of a smaller "
                "one), those of the smallest sha256."
            )
            captions = [release.captions(sha256) for sha256 in chosen]
            vectors = release.lookup(chosen)[0]
        except (shards.ReleaseError, KeyError, OSError) as error:
            raise Missing(f"no usable caption release: {error}", EMBED) from None
        return Sample(chosen, np.array([domains[s] for s in chosen]), np.array(datasets), vectors, captions, rule)

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
    def results(self) -> dict[str, Any]:
        """The evaluation's full account, every number that is shown looked for."""
        file = Path(self.paths.evaluation) / "results.json"
        results = self.json(file, EVAL)
        try:
            results["variant"], results["overall"]["psnr_gain_ci95"], results["model"]["weights_sha256"]
            for row in (results["overall"], *results["datasets"].values()):
                [row[key] for key in ("n", "psnr", "psnr_input", "psnr_gain", "ssim", "ssim_input", "psnr_gain_ci95")]
            [row["domain"] for row in results["datasets"].values()]
        except (KeyError, TypeError, AttributeError) as error:
            raise Missing(f"{file} has another form: {error!r}", EVAL) from None
        return results

    @cached_property
    def image_changes(self) -> dict[str, list[float]]:
        """Change in PSNR of every evaluated image that was degraded, by data set."""
        file = Path(self.paths.evaluation) / "per_image.csv"
        changes: dict[str, list[float]] = defaultdict(list)
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                for row in csv.DictReader(lines):
                    if row["psnr_gain"]:
                        changes[row["dataset"]].append(float(row["psnr_gain"]))
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise Missing(f"{file}: {_reason(error)}", EVAL) from None
        return changes

    @cached_property
    def colours(self) -> dict[str, str]:
        """A colour for each domain that any artifact names."""
        found: set[str] = set()
        for domains in (
            lambda: (row["domain"] for row in self.pairs),
            lambda: self.sample.domains.tolist(),
        ):
            try:
                found |= set(domains())
            except Missing:
                continue  # the section that needs it says so
        return colours(found)

    def json(self, file: str | Path, command: str) -> Any:
        """The content of a JSON file that `command` makes."""
        try:
            return json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
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
