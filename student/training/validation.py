"""Validation inside training: PSNR per dataset, which prompts each task and domain uses, and a panel a dataset."""

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from student.data.dataset import PairDataset
from student.evaluation.metrics import mean_psnr, psnr


def choose_rows(dataset: PairDataset, per_dataset: int) -> list[int]:
    """Rows to validate on: evenly spaced over each dataset, all of them when `per_dataset` is 0."""
    chosen = []
    for rows in dataset.pairs.by_dataset.values():
        count = min(per_dataset or len(rows), len(rows))
        chosen += [int(row) for row in rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]]
    return chosen


@torch.no_grad()
def validate(
    network: Any, dataset: PairDataset, rows: list[int], crop: int, accelerator: Any
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, list[float]]], dict[str, np.ndarray]]:
    """Restore the centres (at most `crop` x `crop`) of `rows`, shared out over the processes.

    Returns, on every process, the scores (dataset → psnr, psnr_input, psnr_gain; variant `basicsr`), the usage
    (pool → task or domain → mean weight of each prompt, [N]) and, on the main process, a panel lq | restored | gt of
    each dataset's first image, uint8 [H, W, 3].
    """
    first = {dataset.pairs.dataset[row]: row for row in reversed(rows)}
    records, panels = [], {}
    processes, mine = accelerator.num_processes, accelerator.process_index
    # Every process runs as many forwards as the others, as sharded weights need; repeats are dropped by their row.
    for start in range(0, len(rows), processes):
        row = rows[min(start + mine, len(rows) - 1)]
        lq, gt = (_centre(image, crop) for image in dataset.whole_image(row))
        restored, prompts = network(torch.from_numpy(lq)[None].to(accelerator.device), return_prompts=True)
        restored = restored[0].float().clamp(0, 1).cpu().numpy()
        usage = {
            name: torch.zeros_like(pool.similarity_BN[0]).scatter_(0, pool.index_BK[0], pool.weight_BK[0]).tolist()
            for name, pool in (("task", prompts.task), ("domain", prompts.domain))
            if pool is not None
        }
        records.append((row, psnr(restored, gt), psnr(lq, gt), usage))
        if first[dataset.pairs.dataset[row]] == row:
            panels[str(dataset.pairs.dataset[row])] = _panel(lq, restored, gt)
    records = {record[0]: record for record in gather_object(records)}
    panels = {name: panel for part in gather_object([panels]) for name, panel in part.items()}
    return _scores(dataset, records), _usage(dataset, records), panels


def _scores(dataset: PairDataset, records: dict[int, Any]) -> dict[str, dict[str, float]]:
    scores = {}
    for name, members in dataset.pairs.by_dataset.items():
        mean, mean_input = (mean_psnr([records[row][i] for row in members if row in records]) for i in (1, 2))
        scores[name] = {"psnr": mean, "psnr_input": mean_input, "psnr_gain": mean - mean_input}
    return scores


def _usage(dataset: PairDataset, records: dict[int, Any]) -> dict[str, dict[str, list[float]]]:
    usage: dict[str, dict[str, list[float]]] = {}
    pools = next(iter(records.values()))[3]
    for pool in pools:
        labels = getattr(dataset.pairs, pool)
        for label in sorted(set(labels)):
            rows = [records[row][3][pool] for row in records if labels[row] == label]
            if rows:
                usage.setdefault(pool, {})[label] = [round(float(x), 6) for x in np.mean(rows, axis=0)]
    return usage


def _centre(image: np.ndarray, crop: int) -> np.ndarray:
    top, left = (max(0, side - crop) // 2 for side in image.shape[1:])
    return np.ascontiguousarray(image[:, top : top + crop, left : left + crop])


def _panel(*images: np.ndarray) -> np.ndarray:
    side_by_side = np.concatenate(images, axis=2).transpose(1, 2, 0)
    return np.round(side_by_side.clip(0, 1) * 255).astype(np.uint8)
