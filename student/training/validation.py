"""Validation inside training: PSNR per dataset, which prompts each task and domain uses, and a panel a dataset."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from student.data.dataset import PairDataset
from student.evaluation.metrics import mean_psnr, psnr
from student.network.prompts import Prompts
from student.training.stopping import TrainingStopped

Network = Callable[..., tuple[torch.Tensor, Prompts]]
Scores = dict[str, dict[str, float]]
Usage = dict[str, dict[str, list[float]]]


def choose_rows(dataset: PairDataset, per_dataset: int) -> list[int]:
    """Rows to validate on: evenly spaced over each dataset, all of them when `per_dataset` is 0."""
    chosen = []
    for rows in dataset.pairs.by_dataset.values():
        count = min(per_dataset or len(rows), len(rows))
        chosen += [int(row) for row in rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]]
    return chosen


@torch.no_grad()
def validate(
    network: Network, dataset: PairDataset, rows: list[int], crop: int, accelerator: Accelerator
) -> tuple[Scores, Usage, dict[str, np.ndarray]]:
    """Restore the centres (at most `crop` x `crop`) of `rows`, shared out over the processes.

    Returns, on every process, the scores (dataset → psnr, psnr_input, psnr_gain; variant `basicsr`), the usage
    (pool → task or domain → mean weight of each prompt, [N]) and, on the main process, a panel lq | restored | gt of
    each dataset's first image, uint8 [H, W, 3]. Raises `TrainingStopped` for an output that is not finite.
    """
    pairs, processes, mine = dataset.pairs, accelerator.num_processes, accelerator.process_index
    first = {pairs.dataset[row]: row for row in reversed(rows)}
    records, panels = [], {}
    # Every process runs as many forwards as the others, as sharded weights need; repeats are dropped by their row.
    for start in range(0, len(rows), processes):
        row = rows[min(start + mine, len(rows) - 1)]
        lq, gt = (_centre(image, crop) for image in dataset.whole_image(row))
        output, prompts = network(torch.from_numpy(lq)[None].to(accelerator.device), return_prompts=True)
        restored = output[0].float().clamp(0, 1).cpu().numpy()
        usage = {
            name: torch.zeros_like(pool.similarity_BN[0]).scatter_(0, pool.index_BK[0], pool.weight_BK[0]).tolist()
            for name, pool in (("task", prompts.task), ("domain", prompts.domain))
            if pool is not None
        }
        if not np.isfinite(restored).all():
            raise TrainingStopped(
                f"validation: {pairs.gt_path[row]} is restored to pixels that are not finite; the last checkpoint is "
                "before it: resume with train.mixed_precision=bf16 or no, or begin anew with a lower train.lr"
            )
        records.append((row, psnr(restored, gt), psnr(lq, gt), usage))
        if first[pairs.dataset[row]] == row:
            panels[pairs.dataset[row]] = _panel(lq, restored, gt)
    seen = {row: record for row, *record in gather_object(records)}
    panels = {name: panel for part in gather_object([panels]) for name, panel in part.items()}
    scores: Scores = {}
    for name, members in pairs.by_dataset.items():
        mean, mean_input = (mean_psnr([seen[row][i] for row in members if row in seen]) for i in (0, 1))
        scores[name] = {"psnr": mean, "psnr_input": mean_input, "psnr_gain": mean - mean_input}
    used: Usage = {pool: {} for pool in records[0][3]}
    for pool, by_label in used.items():
        labels = getattr(pairs, pool)
        for label in sorted({labels[row] for row in seen}):
            mean_weight = np.mean([seen[row][2][pool] for row in seen if labels[row] == label], axis=0)
            by_label[label] = [round(float(x), 6) for x in mean_weight]
    return scores, used, panels


def _centre(image: np.ndarray, crop: int) -> np.ndarray:
    top, left = (max(0, side - crop) // 2 for side in image.shape[1:])
    return np.ascontiguousarray(image[:, top : top + crop, left : left + crop])


def _panel(*images: np.ndarray) -> np.ndarray:
    side_by_side = np.concatenate(images, axis=2).transpose(1, 2, 0)
    return np.round(side_by_side.clip(0, 1) * 255).astype(np.uint8)
