"""Average pooling to a fixed grid, in a form that also survives export."""

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_pool(x: Tensor, grid: int) -> Tensor:
    """`adaptive_avg_pool2d(x, grid)`: [B, C, H, W] → [B, C, grid, grid].

    Exported, it is written as two matrix products, because the exporter would fix the cells' borders to the sides of
    the example image, and an ONNX file would then fail, or pool the wrong cells, at every other size.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, grid)
    rows, columns = (_cells(side, grid, x) for side in x.shape[2:])
    return rows @ x @ columns.transpose(0, 1)


def _cells(size: int, grid: int, like: Tensor) -> Tensor:
    """[grid, size]: row i averages the pixels floor(i·size/grid) to ceil((i+1)·size/grid)."""
    cell, pixel = torch.arange(grid, device=like.device)[:, None], torch.arange(size, device=like.device)
    inside = (pixel >= cell * size // grid) & (pixel < ((cell + 1) * size + grid - 1) // grid)
    return inside.to(like.dtype) / inside.sum(1, keepdim=True)
