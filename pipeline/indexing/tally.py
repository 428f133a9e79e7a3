"""What an indexing run has counted on the way."""

import math
from array import array
from collections import Counter

import numpy as np

from pipeline.indexing.config import IndexConfig

FIRST = 10
"""Faults that a failing stage names."""


class Tally:
    """What has been counted on the way: statuses, distinct clean images, the first faults."""

    def __init__(self):
        self.statuses: Counter = Counter()
        self._images = array("Q")  # a number a row: a set of a million would take 70 MB
        self.first: list[str] = []

    def add(self, row: dict) -> dict:
        """Count one row; returns it."""
        self.statuses[row["status"]] += 1
        if row["status"] == "ok":
            self._images.append(int(row["gt_sha256"][:16], 16))
        elif len(self.first) < FIRST:
            self.first.append(row["error"])
        return row

    @property
    def images(self) -> int:
        """Distinct clean images."""
        return len(np.unique(np.frombuffer(self._images, np.uint64)))

    @property
    def bad(self) -> int:
        return self.statuses.total() - self.statuses["ok"]

    @property
    def fraction(self) -> float:
        """The least `max_bad_fraction` that lets these pass."""
        return math.ceil(1e4 * self.bad / max(self.statuses.total(), 1)) / 1e4

    @property
    def faults(self) -> str:
        """Such as "1 unpaired, 2 unreadable"."""
        return ", ".join(f"{n} {status}" for status, n in sorted(self.statuses.items()) if status != "ok") or "0 bad"

    def acceptable(self, config: IndexConfig) -> bool:
        """Whether the stage succeeds."""
        return self.statuses["ok"] > 0 and self.bad <= config.max_bad_fraction * self.statuses.total()
