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

    def save(self, file: Path) -> None:
        """The whole average, or this process's shard of it."""
        save_file({name: _local(average).contiguous() for name, average in self._average.items()}, file)

    @torch.no_grad()
    def load(self, file: Path) -> None:
        saved = load_file(file)
        for name, average in self._average.items():
            _local(average).copy_(saved[name])


def _local(tensor: Tensor) -> Tensor:
    """This process's shard of a DTensor, or the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor.data
