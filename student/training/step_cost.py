"""What a function asks of a device, counted without running it: kernels, bytes moved, arithmetic.

Counted over aten operations, best on fake tensors, which have shapes but no storage. A view or an allocation is no
kernel; an operation that computes is one. A convolution's or norm's backward pass is two, each of which reads the
features anew, and an operation on lists as many as PyTorch cuts it into. A kernel reads its inputs and writes its
outputs once. Arithmetic is that of products and convolutions: two operations for a multiplication with its addition.
"""

import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from student.model import Student
from student.network.config import ModelConfig
from student.network.gpu_blocks import formulate
from student.training.config import TrainConfig
from student.training.ema import WeightAverage
from student.training.losses import compute_losses
from student.training.weights import PRECISIONS

aten = torch.ops.aten

FREE = ("empty", "new_empty", "detach", "_unsafe_view", "lift", "alias", "is_", "sym_", "_record")
OVERWRITING = ("copy_", "zero_", "fill_", "normal_", "uniform_", "bernoulli_", "_foreach_copy_", "_foreach_zero_")
"""Operations in place that do not read what they replace."""
AT_ONCE = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
CHUNK, CHUNKS = 65_536, 320
"""How PyTorch cuts an operation on lists: by the number of lists so many tensors a kernel, of so many chunks of so many
elements."""
PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1}
"""Where the first factor stands among the arguments."""


class StepCost(TorchDispatchMode):
    """Inside, every operation of this thread and of its backward passes is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes, self.operations = 0, 0, 0

    def __torch_dispatch__(self, kernel: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outputs = kernel(*args, **(kwargs or {}))
        packet = kernel.overloadpacket
        name = packet.__name__
        if kernel.namespace == "aten" and not kernel.is_view and not name.startswith(FREE):
            read, written = _tensors(kernel, args, kwargs or {}, outputs)
            launches, again = 1, 0
            if name.startswith(("_foreach", "_fused_adam")):
                lists = [argument for argument in args if isinstance(argument, list | tuple) and argument]
                chunks = sum(-(-tensor.numel() // CHUNK) for tensor in lists[0])
                launches = max(-(-len(lists[0]) // AT_ONCE[min(len(lists), 5)]), -(-chunks // CHUNKS))
            elif name in ("convolution_backward", "native_layer_norm_backward"):
                launches, again = 2, _nbytes(args[0])
            elif name == "constant_pad_nd":
                launches = 2
            self.kernels += launches
            self.bytes += again + sum(map(_nbytes, read)) + sum(map(_nbytes, written))
            self.operations += _operations(packet, args, outputs)
        return outputs


def _tensors(kernel: Any, args: tuple, kwargs: dict, outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """(read, written) by a call of `kernel`."""
    schema, read, written = kernel._schema, [], []
    for i, argument in enumerate(schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        replaced = argument.alias_info is not None and argument.alias_info.is_write
        if replaced:
            written += tensors
        if not replaced or not (argument.is_out or kernel.overloadpacket.__name__ in OVERWRITING):
            read += tensors
    if not any(result.alias_info for result in schema.returns):
        written += [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]
    return read, written


def _nbytes(tensor: Tensor) -> int:
    """Of its distinct elements."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(side for side, stride in sides if stride) * tensor.element_size()


def _operations(packet: Any, args: tuple, outputs: Any) -> int:
    if packet in PRODUCTS:
        first, second = args[PRODUCTS[packet] :][:2]
        return 2 * first.numel() * second.shape[-1]
    if packet is aten.convolution:
        return 2 * outputs.numel() * args[1][0].numel()
    if packet is aten.convolution_backward:
        return 2 * sum(args[-1][:2]) * args[0].numel() * args[2][0].numel()
    return 0


class Rehearsal(NamedTuple):
    """One process's step, computed without numbers."""

    parameters: int
    activations: int
    """Bytes that one micro-batch keeps for its backward pass, without the convolutions' workspaces."""
    cost: StepCost


def rehearse(config: TrainConfig, model: ModelConfig, processes: int, device: torch.device) -> Rehearsal:
    """A step on `device`: forward, losses and backward of each micro-batch, clipping, Adam (fused), moving average."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # views share it; held, so that no other takes its address
        return tensor

    crops = max(1, config.batch_size // (config.grad_accumulation * processes))
    precision = PRECISIONS.get(config.mixed_precision)
    autocast = torch.autocast(device.type, precision, enabled=precision is not None)
    with FakeTensorMode(), device:
        student = Student(model).train()
        formulate(student.backbone, device)
        weights = list(student.parameters())
        optimizer = torch.optim.Adam(weights, fused=True)
        for weight in weights:
            weight.grad = torch.empty_like(weight)
        optimizer.step()  # makes its state
        optimizer.zero_grad()
        average = WeightAverage(student, config.ema_decay) if config.ema_decay else None
        lq, gt = (torch.empty(crops, 3, config.patch_size, config.patch_size) for _ in range(2))
        labels, has_prior = torch.empty(crops, dtype=torch.long), torch.empty(crops, dtype=torch.bool)
        batch = {"gt": gt, "task": labels, "domain": labels, "has_prior": has_prior}
        batch["prior"] = torch.empty(crops, model.prompt_dim or 0)
        values = {name: pool.values_NLD for name, pool in student.pools().items()}
        with StepCost() as cost:
            for _ in range(config.grad_accumulation):
                kept.clear()
                with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    restored, prompts = student(lq, return_prompts=True)
                own = {weight.untyped_storage()._cdata for weight in weights}
                activations = sum(storage.nbytes() for key, storage in kept.items() if key not in own)
                compute_losses(restored, prompts, batch, values, config).total.backward()
            torch.nn.utils.clip_grad_norm_(weights, config.clip_norm, foreach=True)
            optimizer.step()
            if average:
                average.update(0)
    return Rehearsal(sum(weight.numel() for weight in weights), activations, cost)


def seconds_here(cost: StepCost, device: torch.device, precision: torch.dtype) -> dict[str, float]:
    """How long `device` takes for each of a step's three demands alone, by what it does in a fraction of a second."""
    size = 8192 if device.type == "cuda" else 1024
    factor = torch.ones(size, size, dtype=precision, device=device)
    source, small = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device), torch.ones(1, device=device)
    target = torch.empty_like(source)
    return {
        "memory": cost.bytes * _seconds(lambda: target.copy_(source), device) / (2 * source.nbytes),
        "arithmetic": cost.operations * _seconds(lambda: factor @ factor, device) / (2 * size**3),
        "launching": cost.kernels * _seconds(lambda: small.add_(1), device, 200),
    }


def _seconds(function: Any, device: torch.device, times: int = 5) -> float:
    """Of one call, the least of three rounds."""
    rounds = []
    for _ in range(4):
        begun = time.perf_counter()
        for _ in range(times):
            function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        rounds.append((time.perf_counter() - begun) / times)
    return min(rounds[1:])
