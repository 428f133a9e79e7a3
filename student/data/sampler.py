"""Which crops make up which batch: a pure function of (seed, step), so that a run resumes anywhere, exactly.

Nothing here has a state to save: the number of processes and workers may change between interruptions, and prefetched
batches are never counted as seen.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from student.params import ParamsError

GOLDEN = 0.6180339887498949


class Draw(NamedTuple):
    """One crop of a batch: row `row` of the pairs, on its dataset's pass number `epoch`."""

    row: int
    epoch: int


class BalancedBatches(Sampler[list[Draw]]):
    """Balanced batches as published: of B crops and N datasets, k = B // N come from each dataset and one more from
    each of the remaining B - k N, in turn [authors' code]; a dataset that is exhausted restarts, newly shuffled.

    Weights w_d generalise this: k_d = floor(B w_d / sum w), and the rest goes by systematic sampling of the fractional
    parts, whose offset moves by the golden ratio from batch to batch: every dataset's share is exact in the long run
    and never off by more than a few crops. (Repeat counts, as the authors' code has them, only lengthen its epochs.)

    Iterating yields what process `part` of `parts` sees of the batches `first` to `last` (exclusive): `micro_batches`
    lists a batch, all of one size, disjoint over processes and micro-batches, each a mixture of all datasets.
    """

    def __init__(
        self,
        rows: Mapping[str, np.ndarray],
        batch_size: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        first: int = 0,
        last: int = 0,
        part: int = 0,
        parts: int = 1,
        micro_batches: int = 1,
    ):
        if unknown := sorted(set(weights or {}) - set(rows)):
            raise ParamsError(f"train.dataset_weights names {unknown[0]!r}; the datasets are {', '.join(sorted(rows))}")
        if batch_size % (parts * micro_batches):
            product = f"processes x grad_accumulation = {parts} x {micro_batches}"
            raise ParamsError(f"train.batch_size {batch_size} must be a multiple of {product}")
        share = {name: (weights or {}).get(name, 1.0) for name in sorted(rows) if len(rows[name])}
        self.names = [name for name, weight in share.items() if weight > 0]
        if not self.names:
            raise ParamsError("no dataset to train on: all are empty or have weight 0 in train.dataset_weights")
        self.rows = [np.asarray(rows[name]) for name in self.names]
        # A dataset's order hangs on its name, not its place: adding a dataset leaves the others' order as it was.
        self.keys = [zlib.crc32(name.encode()) for name in self.names]
        quota = np.array([share[name] for name in self.names])
        quota = batch_size * quota / quota.sum()
        self.base = np.floor(quota + 1e-9).astype(np.int64)
        self.edges = np.concatenate([[0.0], np.cumsum(np.maximum(quota - self.base, 0))])
        self.edges[-1] = batch_size - self.base.sum()
        self.batch_size, self.seed = batch_size, seed
        self.first, self.last = first, last
        self.part, self.parts, self.micro_batches = part, parts, micro_batches
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def composition(self, batches: np.ndarray | int) -> np.ndarray:
        """Crops from each dataset (in the order of `names`) in these batches, [..., N]."""
        offset = np.asarray(batches)[..., None] * GOLDEN % 1.0
        return self.base + np.diff(np.floor(self.edges + offset), axis=-1).astype(np.int64)

    def drawn_before(self, batch: int) -> np.ndarray:
        """Crops that each dataset has given to all batches before this one."""
        chunks = range(0, batch, 65536)
        return sum((self.composition(np.arange(c, min(c + 65536, batch))).sum(0) for c in chunks), 0 * self.base)

    def __iter__(self) -> Iterator[list[Draw]]:
        drawn, stride = self.drawn_before(self.first), self.parts * self.micro_batches
        for batch in range(self.first, self.last):
            counts = self.composition(batch)
            places = enumerate(zip(drawn, counts, strict=True))
            whole = [self._draw(d, start + i) for d, (start, count) in places for i in range(count)]
            for micro in range(self.micro_batches):
                yield whole[micro * self.parts + self.part :: stride]
            drawn = drawn + counts

    def __len__(self) -> int:
        return (self.last - self.first) * self.micro_batches

    def _draw(self, dataset: int, position: int) -> Draw:
        rows = self.rows[dataset]
        epoch, place = divmod(int(position), len(rows))
        known = self._orders.get(dataset)
        if known is None or known[0] != epoch:
            order = np.random.default_rng([self.seed, self.keys[dataset], epoch]).permutation(len(rows))
            known = self._orders[dataset] = (epoch, order)
        return Draw(int(rows[known[1][place]]), epoch)
