"""Exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class WeightAverage:
    """average ← d · average + (1 - d) · weights after each step, d = min(decay, (1 + step) / (10 + step)).

    It works on each process's own parameters, whole (DDP) or sharded (FSDP2), so it exchanges nothing.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._parameters = dict(model.named_parameters())
        self._average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the update that made `step` steps complete."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model's weights are the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            mine, theirs = _local(parameter), _local(self._average[name])
            kept = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(kept)

    def save(self, folder: Path, process: int, sharded: bool) -> None:
        """One file, or one a process when the parameters are sharded."""
        if sharded or process == 0:
            tensors = {name: _local(average).contiguous() for name, average in self._average.items()}
            save_file(tensors, folder / _file(process if sharded else 0))

    @torch.no_grad()
    def load(self, folder: Path, process: int, sharded: bool) -> None:
        saved = load_file(folder / _file(process if sharded else 0))
        for name, average in self._average.items():
            _local(average).copy_(saved[name])


def _file(process: int) -> str:
    return f"ema-{process:05d}.safetensors"


def _local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.data
