"""What the report reads, each file once and only when a section asks; what is not there raises `Missing`."""

import json
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import shards
from pipeline.reporting.blocks import Missing
from pipeline.reporting.config import ReportConfig
from student.data.pairs import index_files, read_index_file
from student.params import Paths

COLUMNS = "dataset domain task split gt_path lq_path degradation range upsample gt_sha256 width height status".split()
SCORES = "n psnr psnr_input psnr_gain ssim ssim_input psnr_gain_ci95".split()
INDEX, EMBED, TRAIN, EVAL = (
    "python -m pipeline.index",
    "python -m pipeline.embed",
    "accelerate launch student/train.py",
    "python -m student.eval",
)


class Sample(NamedTuple):
    """The images of the release that the report looks at, sorted by sha256, and in `rule` how they were chosen.

    `vectors`: their priors, float32 `[n, dim]` of unit length; `captions`: of each, perspective → text.
    """

    sha256s: list[str]
    domains: np.ndarray
    vectors: np.ndarray
    captions: list[dict[str, str]]
    rule: str


class Inputs:
    """Lazy, cached access to every artifact."""

    def __init__(self, paths: Paths, config: ReportConfig):
        self.paths, self.config = paths, config

    @cached_property
    def index(self) -> list[dict[str, Any]]:
        """All rows of the index."""
        file = self.paths.index
        try:
            return read_index_file(index_files(file), COLUMNS).to_pylist()
        except (OSError, ValueError) as error:
            raise Missing(f"{file}: {_reason(error)}", INDEX) from None

    @cached_property
    def pairs(self) -> list[dict[str, Any]]:
        """The rows that training and evaluation use, by domain and data set; there is at least one."""
        pairs = [row for row in self.index if row["status"] == "ok"]
        if not pairs:
            raise Missing(f"{self.paths.index} has no usable row", f"{INDEX} --check")
        return sorted(pairs, key=lambda row: (row["domain"], row["dataset"], row["gt_sha256"]))

    @cached_property
    def clean(self) -> dict[str, dict[str, Any]]:
        """One row of every clean image, by sha256."""
        return {row["gt_sha256"]: row for row in self.pairs}

    @cached_property
    def sample(self) -> Sample:
        """At most `report.max_priors` images of the release, an equal share of each data set."""
        groups: dict[str, set[str]] = defaultdict(set)
        of: dict[str, str] = {}
        try:
            release = shards.open_release(self.paths.release)
            for row in release.aliases().to_pylist():
                groups[row["dataset"]].add(row["image_sha256"])
                of[row["image_sha256"]] = min(row["domain"], of.get(row["image_sha256"], row["domain"]))
            if not of:
                raise Missing(f"{self.paths.release} does not say where its images come from", EMBED)
            limit, chosen, rule = self.config.max_priors, sorted(of), f"All {len(of)} images of the release."
            if len(of) > limit:
                share = max(1, limit // len(groups))
                chosen = sorted({sha256 for group in groups.values() for sha256 in sorted(group)[:share]})[:limit]
                rule = f"{len(chosen)} of {len(of)} images: {share} of each data set, those of the smallest sha256."
            captions, vectors = [release.captions(sha256) for sha256 in chosen], release.lookup(chosen)[0]
        except (shards.ReleaseError, KeyError, OSError) as error:
            raise Missing(f"no usable caption release: {error}", EMBED) from None
        return Sample(chosen, np.array([of[sha256] for sha256 in chosen]), vectors, captions, rule)

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
        """The evaluation's full account; all that is shown of it is there."""
        file = Path(self.paths.evaluation) / "results.json"
        results = self.json(file, EVAL)
        try:
            _ = results["variant"]
            for row in (results["overall"], *results["datasets"].values()):
                _ = [row[key] for key in SCORES]
        except (KeyError, TypeError, AttributeError) as error:
            raise Missing(f"{file} has another form: {error!r}", EVAL) from None
        return results

    def json(self, file: str | Path, command: str) -> Any:
        """The content of a JSON file that `command` makes."""
        try:
            return json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Missing(f"{file}: {_reason(error)}", command) from None


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
