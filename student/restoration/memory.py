"""How much memory there is, and how much a forward of the student takes: what `--tile auto` is chosen from."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from student.machine import free_bytes


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`, those included that torch holds there without using them."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_bytes()


@torch.no_grad()
def forward_bytes(student: torch.nn.Module) -> Callable[[int], float]:
    """Peak bytes of live float32 activations of a forward, as a function of the number of input pixels.

    Counted, not guessed: two small forwards, and a line through both; that is right for every backbone, configuration
    and device. Workspaces inside convolutions come on top; `student.restoration.restorer` leaves room for them.
    """
    device = next(student.parameters()).device
    sides, peaks = (64, 128), []
    for side in sides:
        image = torch.zeros(1, 3, side, side, device=device)
        with _LiveBytes() as live:
            student(image)
        peaks.append(live.peak)
    slope = (peaks[1] - peaks[0]) / (sides[1] ** 2 - sides[0] ** 2)
    return lambda pixels: peaks[0] + slope * (pixels - sides[0] ** 2)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive at once, by watching storages come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would else import its compiler here, for ten seconds, only to keep it away from this class

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # views share it
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
