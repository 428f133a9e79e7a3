"""Training pairs: index rows joined with the teacher's priors, cropped, turned and degraded by (seed, sample, epoch).

B batch, P patch side, D prompt dim. Images are float32 RGB in [0, 1], CHW, unless a docstring says otherwise.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from shards import Release
from student.data.cache import Enlarged, FreshImages, Images, as_float
from student.data.degradations import WHOLE, DegradationSpec, degrade
from student.data.pairs import Pairs, TrainDataError, exchanged
from student.data.sampler import Draw


class PairDataset(Dataset):
    """Batches of training crops. `dataset.__getitems__(draws)` is what a `DataLoader` with `collate_fn=whole` calls.

    A batch: lq, gt [B, 3, P, P]; prior [B, D] and has_prior [B] (all False without a release); task, domain [B] label
    numbers; row [B]. What a draw gives is a function of (seed, clean image, dataset, epoch) alone.
    """

    def __init__(
        self,
        pairs: Pairs,
        release: Release | None,
        patch_size: int,
        seed: int,
        augment: bool = True,
        images: Images | None = None,
        shuffle_priors: bool = False,
    ):
        self.pairs, self.release, self.patch_size, self.seed, self.augment = pairs, release, patch_size, seed, augment
        self.images = images or FreshImages(pairs.ranges)
        self.prior_of = exchanged(pairs.gt_sha256, seed) if shuffle_priors else {}
        self.specs = {text: DegradationSpec.model_validate_json(text) for text in set(pairs.degradation) if text}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, draws: Sequence[Draw]) -> dict[str, torch.Tensor]:
        crops = [self.crop(draw) for draw in draws]
        rows = np.array([draw.row for draw in draws])
        prior, found = np.zeros((len(rows), 1), np.float32), np.zeros(len(rows), bool)
        if self.release is not None:
            prior, found = self.release.lookup([self.prior_of.get(x, x) for x in self.pairs.gt_sha256[rows]])
        return {
            "lq": torch.from_numpy(np.stack([lq for lq, _ in crops])),
            "gt": torch.from_numpy(np.stack([gt for _, gt in crops])),
            "prior": torch.from_numpy(np.array(prior, np.float32)),
            "has_prior": torch.from_numpy(np.array(found, bool)),
            **{pool: torch.from_numpy(numbers[rows]) for pool, numbers in self.pairs.labels.items()},
            "row": torch.from_numpy(rows),
        }

    def crop(self, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """The aligned crops (lq, gt) of one draw, [3, P, P]."""
        row, pairs = draw.row, self.pairs
        key = [self.seed, int(pairs.gt_sha256[row][:15], 16), zlib.crc32(pairs.dataset[row].encode()), draw.epoch]
        rng = np.random.default_rng(key)
        images: list[np.ndarray | Enlarged] = [self.images[pairs.gt_path[row]]]
        if pairs.lq_path[row] is not None:
            images.append(self._stored_lq(row))
            if images[0].shape != images[1].shape:
                raise TrainDataError(
                    f"{pairs.lq_path[row]}: {images[1].shape[2]}x{images[1].shape[1]} pixels, its gt "
                    f"{images[0].shape[2]}x{images[0].shape[1]}; run the index stage again"
                )
        spec = self.specs.get(pairs.degradation[row])
        if spec is not None and spec.kind in WHOLE:
            images.append(self.degraded(as_float(images[0]), spec, rng))
        top, left = (int(rng.integers(max(side - self.patch_size, 0) + 1)) for side in images[0].shape[1:])
        turn = (bool(rng.integers(2)), int(rng.integers(4))) if self.augment else (False, 0)
        if len(images) == 2:
            gt, lq = (self._window(image, top, left, turn) for image in images)
            return lq, gt
        # Degraded with what lies around the crop, as the whole image would be, and then cut.
        margin = spec.margin(rng)
        gt = spec.toned(self._window(images[0], top, left, turn, margin), rng)
        inside = (slice(None), *(slice(margin, side - margin) for side in gt.shape[1:]))
        return self.degraded(gt, spec, rng)[inside], np.ascontiguousarray(gt[inside])

    def _stored_lq(self, row: int) -> np.ndarray | Enlarged:
        image, scale = self.images[self.pairs.lq_path[row]], self.pairs.upsample[row]
        return Enlarged(image, scale) if scale else image

    def _window(
        self, image: np.ndarray | Enlarged, top: int, left: int, turn: tuple[bool, int], margin: int = 0
    ) -> np.ndarray:
        """The patch at (top, left), with `margin` more pixels on every side, mirrored where the image ends."""
        size, places, missing = self.patch_size + 2 * margin, [slice(None)], [(0, 0)]
        for start, side in ((top - margin, image.shape[1]), (left - margin, image.shape[2])):
            places.append(slice(max(start, 0), start + size))
            missing.append((max(-start, 0), max(start + size - side, 0)))
        window = image[tuple(places)]
        if any(map(any, missing)):
            window = np.pad(window, missing, mode="symmetric")
        flip, turns = turn
        window = np.rot90(window[:, :, ::-1] if flip else window, turns, axes=(1, 2))
        return as_float(np.ascontiguousarray(window))

    @staticmethod
    def degraded(gt: np.ndarray, spec: DegradationSpec, rng: np.random.Generator) -> np.ndarray:
        """The input [3, H, W] that `spec` makes of a clean image."""
        lq = degrade(gt.transpose(1, 2, 0), spec, rng)
        return np.ascontiguousarray(lq.transpose(2, 0, 1), dtype=np.float32)

    def whole_image(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(lq, gt) of one row uncropped, [3, H, W], for validation: a degradation is seeded by the file's name."""
        pairs = self.pairs
        gt = as_float(self.images[pairs.gt_path[row]])
        if pairs.lq_path[row] is not None:
            return as_float(self._stored_lq(row)[:, :, :]), gt
        rng = np.random.default_rng(zlib.crc32(Path(pairs.gt_path[row]).name.encode()))
        return self.degraded(gt, self.specs[pairs.degradation[row]], rng), gt


def whole(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The collate function: `PairDataset` makes whole batches itself (and worker processes can pickle this name)."""
    return batch
