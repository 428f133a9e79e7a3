"""FSDP2: the student, its gradients and Adam's state shared out over the processes."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from student.training.checkpoints import CheckpointError

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def shards_of(accelerator: Accelerator) -> int:
    """Into how many parts the weights are split; 0 where every process has all of them."""
    return accelerator.num_processes if accelerator.distributed_type == "FSDP" else 0


def check_shards(folder: Path, written: int, wanted: int) -> None:
    """Raises `CheckpointError` when the checkpoint in `folder` is split in another way than this start."""
    if written != wanted:
        there, here = (f"FSDP2 over {n} processes" if n else "whole weights, without FSDP2" for n in (written, wanted))
        raise CheckpointError(
            f"{folder}: it was written by {there}, and this start is {here}; start as before, or begin anew elsewhere "
            "(paths.student) from the student that it published (--init-from)"
        )


def make_shardable(student: nn.Module, accelerator: Accelerator) -> None:
    """Call before `accelerator.prepare`, where `shards_of` is not 0.

    The whole student is one unit, whatever `fsdp_auto_wrap_policy` says: the blocks' conditions are computed outside
    the blocks, and 53 M parameters, gathered, are 0.2 GB. Precision is autocast's, as without FSDP: FSDP2's own would
    round the input, the residual connection and the prompt branch to half precision.
    """
    plugin = accelerator.state.fsdp_plugin
    plugin.auto_wrap_policy = plugin.mixed_precision_policy = None
    if precision := PRECISIONS.get(accelerator.mixed_precision):
        student.forward = torch.autocast(accelerator.device.type, precision)(student.forward)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, with gradients; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
