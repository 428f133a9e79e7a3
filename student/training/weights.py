"""What a run trains: the network, its optimiser and its moving average, laid out for the device, saved and restored."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from student.network.gpu_blocks import formulate
from student.training.checkpoints import CheckpointError
from student.training.config import TrainConfig
from student.training.ema import WeightAverage

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainedWeights:
    """`model` is the student as Accelerate wraps it, `network` the student inside, `optimizer` its Adam, `average` its
    `WeightAverage` (None without `ema_decay`), `shards` the number of parts that FSDP2 splits all of them into (0:
    whole)."""

    def __init__(self, student: nn.Module, config: TrainConfig, accelerator: Accelerator):
        self._accelerator, self._config = accelerator, config
        self.shards = accelerator.num_processes if accelerator.distributed_type == "FSDP" else 0
        if self.shards:
            _make_shardable(student, accelerator)
        elif config.channels_last:  # FSDP2 takes contiguous weights only
            student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        formulate(student.backbone, accelerator.device)
        self._fused = accelerator.device.type != "cpu"
        options = {"lr": config.lr, "betas": config.betas, "fused": self._fused}
        if config.optimizer == "adamw":
            optimizer: torch.optim.Adam = torch.optim.AdamW(
                student.parameters(), weight_decay=config.weight_decay, **options
            )
        else:
            optimizer = torch.optim.Adam(student.parameters(), **options)
        if config.compile:
            # For the one size of all crops. Left to itself torch makes it dynamic once the process (or, by its profile
            # on disk, an earlier one) has seen others, and Inductor (2.13) fails at strides of a padded side then.
            student.compile(dynamic=False)
        self.model, self.optimizer = accelerator.prepare(student, optimizer)
        self._fit_optimizer()
        self.network = accelerator.unwrap_model(self.model)
        self.average = WeightAverage(self.network, config.ema_decay) if config.ema_decay else None
        self._average_file = f"ema-{accelerator.process_index if self.shards else 0:05d}.safetensors"
        self.pool_values = {name: pool.values_NLD for name, pool in self.network.pools().items()}

    def save(self, folder: Path) -> None:
        """Called by every process."""
        self._accelerator.save_state(str(folder))
        if self.average and (self.shards or self._accelerator.is_main_process):
            self.average.save(folder / self._average_file)

    def restore(self, folder: Path, shards: int) -> None:
        """From a checkpoint written over `shards` parts. Raises `CheckpointError` when it is split in another way."""
        if shards != self.shards:
            there, here = (
                f"FSDP2 over {n} processes" if n else "whole weights, no FSDP2" for n in (shards, self.shards)
            )
            raise CheckpointError(
                f"{folder}: it was written by {there}, and this start is {here}; start as before, or begin again "
                "elsewhere (paths.student) from the student that it wrote (--init-from)"
            )
        self._accelerator.load_state(str(folder))
        self._fit_optimizer()
        if self.average:
            self.average.load(folder / self._average_file)

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _fit_optimizer(self) -> None:
        """Fit Adam and its state to this start: a run may go on on another device, in another memory format, or as a
        CUDA graph, and the fused Adam of GPUs takes its moments in the parameters' own layout only."""
        recorded, lr = self._config.cuda_graph, self._config.lr
        for group in self.optimizer.param_groups:
            group |= {"fused": self._fused, "capturable": recorded}
            # A recorded update reads its learning rate where it lies on the device.
            group["lr"] = torch.tensor(lr, device=self._accelerator.device) if recorded else lr
            for parameter in group["params"]:
                state = self.optimizer.state.get(parameter)
                for name in ("exp_avg", "exp_avg_sq") if state and not self.shards else ():
                    state[name] = torch.empty_like(parameter).copy_(state[name])
                if state:
                    state["step"] = state["step"].to(parameter.device if self._fused else "cpu")

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the network's weights are their moving average, if there is one."""
        return self.average.applied() if self.average else nullcontext()

    def whole(self) -> dict[str, Tensor]:
        """The weights to write out, averaged, gathered from all processes, on the CPU. Called by every process."""
        with self.averaged():
            weights = self.network.state_dict()
            return {name: whole_tensor(value).detach().cpu().clone() for name, value in weights.items()}


def _make_shardable(student: nn.Module, accelerator: Accelerator) -> None:
    """Before `accelerator.prepare`, for FSDP2.

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
