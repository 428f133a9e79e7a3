"""`python -m pipeline.index --check`: what the data sets hold and what to fix, before any GPU hour is spent."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from pipeline.indexing.config import IndexConfig
from pipeline.indexing.marks import shared
from pipeline.indexing.probe import Probe, depth
from pipeline.indexing.tally import Tally

NAMED = 3
"""Examples named per kind of fault."""

WARNINGS = {
    "depth_mismatch": "the two images of a pair differ in bits a sample: were values lost? save both alike",
    "scale_mismatch": "inputs of one split are enlarged by different factors; is that meant?",
    "colour_mismatch": "one image of a pair is gray, the other coloured; is that meant?",
}


@dataclass
class Group:
    """What is known of one split of one data set."""

    pairs: int = 0
    images: set = field(default_factory=set)
    modes: Counter = field(default_factory=Counter)
    scale: int | None = None
    faults: Counter = field(default_factory=Counter)
    least: tuple[int, int] = (2**31, 2**31)
    most: tuple[int, int] = (0, 0)


class Check:
    """Collects rows one by one; its memory is about 800 bytes for each distinct clean image."""

    def __init__(self, config: IndexConfig):
        self.config = config
        self.groups: dict[tuple[str, str], Group] = defaultdict(Group)
        self.examples: dict[str, list[str]] = defaultdict(list)
        self.faults: Counter = Counter()
        self.warnings: Counter = Counter()
        # hash of a clean image → where it was first seen, and its marks
        self._train: dict[int, tuple[str, bytes]] = {}
        self._held_out: dict[int, tuple[str, bytes]] = {}

    def add(self, row: dict, lq: Probe | None) -> None:
        """One row of the index, with what its lq holds."""
        group = self.groups[row["dataset"], row["split"]]
        if row["status"] != "ok":
            self._fault(group, row["status"], row["error"], self.faults)
            return
        key, size = int(row["gt_sha256"][:15], 16), (row["width"], row["height"])
        group.pairs += 1
        group.images.add(key)
        group.modes[row["mode"]] += 1
        group.least = tuple(map(min, group.least, size))
        group.most = tuple(map(max, group.most, size))
        if lq is not None and depth(lq.mode) != depth(row["mode"]):
            text = f"{row['lq_path']}: {depth(lq.mode)} bits ({lq.mode}), its gt {depth(row['mode'])} ({row['mode']})"
            self._fault(group, "depth_mismatch", text, self.warnings)
        elif lq is not None and _gray(lq.mode) != _gray(row["mode"]):
            text = f"{row['lq_path']}: {lq.mode}, its gt {row['mode']}"
            self._fault(group, "colour_mismatch", text, self.warnings)
        group.scale = group.scale or row["upsample"] or 1
        if lq is not None and (row["upsample"] or 1) != group.scale:
            text = f"{row['lq_path']}: x{row['upsample'] or 1}, the first of its split x{group.scale}"
            self._fault(group, "scale_mismatch", text, self.warnings)
        side = self._train if row["split"] == "train" else self._held_out
        side.setdefault(key, (f"{row['dataset']} {row['split']}: {row['gt_path']}", row["marks"] or b""))

    def _fault(self, group: Group, kind: str, text: str, where: Counter) -> None:
        group.faults[kind] += 1
        where[kind] += 1
        if len(self.examples[kind]) < NAMED:
            self.examples[kind].append(text)

    def leaks(self) -> list[tuple[str, str]]:
        """Clean images of train that val or test hold too, by content: where each of the two was first seen."""
        return [(self._train[key][0], where) for key, (where, _) in self._held_out.items() if key in self._train]

    def look_alikes(self) -> list[tuple[str, str]]:
        """The same for pictures in other files, or parts of them, that show the same (`pipeline.indexing.marks`)."""
        train = list(self._train.values())
        held_out = [found for key, found in self._held_out.items() if key not in self._train]
        pairs = shared([marks for _, marks in train], [marks for _, marks in held_out])
        return [(train[i][0], held_out[j][0]) for i, j in pairs]

    def report(self, tally: Tally, absent: list[str]) -> int:
        """Print a table per data set and split and what to fix; returns 1 if the index stage would fail, else 0.

        `absent`: why data sets cannot be listed, or what else of the parameters fits none.
        """
        from rich.console import Console
        from rich.table import Table

        console = Console(width=None if Console().is_terminal else 140, highlight=False, emoji=False, markup=False)
        shown = Table(title=f"{self.config.root}", title_justify="left")
        names = ("data set", "split", "pairs", "clean images", "width x height", "modes", "faults")
        for name in names:
            shown.add_column(name, overflow="fold")
        for (dataset, split), group in self.groups.items():
            modes = (mode if len(group.modes) == 1 else f"{n} {mode}" for mode, n in group.modes.most_common())
            faults = ", ".join(f"{n} {kind}" for kind, n in group.faults.most_common()) or "none"
            counts = (str(group.pairs), str(len(group.images)))
            shown.add_row(dataset, split, *counts, _sizes(group), ", ".join(modes), faults)
        console.print(shown)
        for kind, count in (self.faults + self.warnings).items():
            hint = f" (warning: {WARNINGS[kind]})" if kind in WARNINGS else ""
            console.print(f"{count} {kind}{hint}", style="bold")
            for text in self.examples[kind]:
                console.print(f"  {text}")
        if absent:
            console.print(f"{len(absent)} parameters fit no data (--skip-missing leaves them out)", style="bold")
            for text in absent:
                console.print(f"  {text}")
        if leaks := self.leaks():
            console.print(
                f"{len(leaks)} leaked (warning: clean images of train that val or test hold too)", style="bold"
            )
            for pair in leaks[:NAMED]:
                console.print(f"  {'; '.join(pair)}")
        if alike := self.look_alikes():
            what = "the same picture saved again, or a part of it, in train and in val or test"
            console.print(f"{len(alike)} alike (warning: {what})", style="bold")
            for pair in alike[:NAMED]:
                console.print(f"  {'; '.join(pair)}")
        fails = bool(absent) or not tally.acceptable(self.config)
        verdict = "the stage would FAIL" if fails else "ready"
        if tally.fraction > self.config.max_bad_fraction:
            verdict += f" (index.max_bad_fraction = {self.config.max_bad_fraction:g}; these need {tally.fraction:g})"
        console.print(
            f"index --check: {tally.statuses['ok']} pairs, {tally.images} distinct clean images, {tally.faults}, "
            f"{self.warnings.total()} warnings, {len(leaks)} leaked clean images, {len(alike)} alike; {verdict}"
        )
        return int(fails)


def _sizes(group: Group) -> str:
    if not group.pairs:
        return "-"
    spans = [f"{low}" if low == high else f"{low}-{high}" for low, high in zip(group.least, group.most, strict=True)]
    return " x ".join(spans)


def _gray(mode: str) -> bool:
    return mode[:1] in ("L", "1", "I", "F")
