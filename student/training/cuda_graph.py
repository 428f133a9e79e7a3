"""`train.cuda_graph`: the kernels of a step, recorded once and launched together.

A step of the published size launches 11,000 kernels, which takes an eager process longer than the GPU needs to run
them (H100, bf16, 12 crops of 128²: 317 ms a step, of which the GPU works 128).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils._pytree import tree_map

from student.params import ParamsError

EAGER_CALLS = 3
"""Ordinary calls before the recording: they choose algorithms and make the optimiser's state."""


def check(accelerator: Accelerator) -> None:
    """Raises `ParamsError` where a step cannot be recorded."""
    place, processes = accelerator.device.type, accelerator.num_processes
    if place != "cuda" or processes > 1:
        raise ParamsError(f"train.cuda_graph: this run is on {place} x {processes}, not on one GPU; set it to false")


class Recorded:
    """A function of tensors. Its first calls are ordinary ones; the next is recorded as a CUDA graph and replayed, as
    are all others, in which its Python does not run.

    Arguments are iterables of tensors, or of dictionaries of tensors, whose shapes stay; what it returns is overwritten
    by the next call. Random numbers are those of an ordinary call with the same seed. What else it reads or writes must
    stay where it is: weights, gradients, the optimiser's state, a learning rate that is a tensor.
    """

    def __init__(self, function: Callable[..., Any]):
        self._function, self._left, self._stream = function, EAGER_CALLS, torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Iterable[Any]) -> Any:
        inputs = [list(argument) for argument in arguments]
        if self._left:
            self._left -= 1
            # Not on the default stream: autograd's nodes of the weights would bind the recording to it.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                outputs = self._function(*inputs)
            torch.cuda.current_stream().wait_stream(self._stream)
            return outputs
        if self._graph is None:
            self._inputs = tree_map(torch.clone, inputs)
            self._graph = torch.cuda.CUDAGraph()
            # thread_local: the loader's thread may pin memory meanwhile.
            with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
        tree_map(lambda kept, given: kept.copy_(given, non_blocking=True), self._inputs, inputs)
        self._graph.replay()
        return self._outputs
