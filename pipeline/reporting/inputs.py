"""What the report reads, each file once and only when a section asks; what is not there raises `Missing`."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


@dataclass
class Pairs:
    """What the report tells of the usable rows of the index."""

    n: int = 0
    images: int = 0
    "different clean images"
    of_set: Counter = field(default_factory=Counter)
    "(domain, data set, task, split) → pairs"
    sides: tuple[int, int] = (2**31, 0)
    "smallest and largest side"
    left_out: Counter = field(default_factory=Counter)
    "rows that are not usable, by status"
    first: dict[str, dict[str, Any]] = field(default_factory=dict)
    "data set → its row with the smallest sha256"

    @property
    def domain_of(self) -> dict[str, str]:
        """Data set → domain, in order of both."""
        return {dataset: domain for domain, dataset, *_ in sorted(self.of_set)}

    def add(self, table: pa.Table) -> None:
        """The rows of one file: no clean image has rows in two."""
        usable = table.filter(pc.field("status") == "ok")
        self.left_out.update(table["status"].to_pylist())
        del self.left_out["ok"]
        if not len(usable):
            return
        self.n += len(usable)
        self.images += pc.count_distinct(usable["gt_sha256"]).as_py()
        ends = [pc.min_max(usable[side]).as_py() for side in ("width", "height")]
        self.sides = min(self.sides[0], *(e["min"] for e in ends)), max(self.sides[1], *(e["max"] for e in ends))
        groups = usable.group_by(["domain", "dataset", "task", "split"]).aggregate([([], "count_all")])
        self.of_set.update({tuple(group): n for *group, n in zip(*groups.to_pydict().values(), strict=True)})
        for name in pc.unique(usable["dataset"]).to_pylist():
            mine = usable.filter(pc.field("dataset") == name).sort_by("gt_sha256").slice(0, 1).to_pylist()[0]
            self.first[name] = min(self.first.get(name, mine), mine, key=lambda row: row["gt_sha256"])


class Inputs:
    """Lazy, cached access to every artifact."""

    def __init__(self, paths: Paths, config: ReportConfig):
        self.paths, self.config = paths, config

    def _index(self) -> Iterator[pa.Table]:
        """All rows of the index, one of its files after the other."""
        try:
            for file in index_files(self.paths.index):
                yield read_index_file(file, COLUMNS)
        except (OSError, ValueError) as error:
            raise Missing(f"{self.paths.index}: {_reason(error)}", INDEX) from None

    @cached_property
    def pairs(self) -> Pairs:
        """The rows that training and evaluation use; there is at least one."""
        found = Pairs()
        for table in self._index():
            found.add(table)
        if not found.n:
            raise Missing(f"{self.paths.index} has no usable row", f"{INDEX} --check")
        return found

    def row_of(self, sha256: str) -> dict[str, Any] | None:
        """A usable row of a clean image."""
        for table in self._index():
            mine = table.filter((pc.field("gt_sha256") == sha256) & (pc.field("status") == "ok"))
            if len(mine):
                return mine.slice(0, 1).to_pylist()[0]
        return None

    @cached_property
    def sample(self) -> Sample:
        """At most `report.max_priors` images of the release, an equal share of each data set."""
        try:
            release = shards.open_release(self.paths.release)
            aliases = release.aliases().select(["image_sha256", "dataset", "domain"])
            if not len(aliases):
                raise Missing(f"{self.paths.release} does not say where its images come from", EMBED)
            limit, share = self.config.max_priors, None
            if len(release) > limit:
                sets = pc.unique(aliases["dataset"])
                share = max(1, limit // len(sets))
                heads = [pc.unique(aliases.filter(pc.field("dataset") == name)["image_sha256"]) for name in sets]
                some = sorted({sha256 for head in heads for sha256 in head.sort()[:share].to_pylist()})[:limit]
                aliases = aliases.filter(pc.is_in(aliases["image_sha256"], pa.array(some)))
            of = aliases.group_by("image_sha256").aggregate([("domain", "min")]).sort_by("image_sha256")
            chosen, domains = of["image_sha256"].to_pylist(), of["domain_min"].to_numpy()
            rule = f"All {len(release)} images of the release."
            if share:
                rule = (
                    f"{len(chosen)} of {len(release)} images: {share} of each data set, those of the smallest sha256."
                )
            captions, vectors = [release.captions(sha256) for sha256 in chosen], release.lookup(chosen)[0]
        except (shards.ReleaseError, KeyError, OSError) as error:
            raise Missing(f"no usable caption release: {error}", EMBED) from None
        return Sample(chosen, domains, vectors, captions, rule)

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
