"""One process of many: which, and waiting for the others."""

import os
from datetime import timedelta


def process_of_many() -> tuple[int, int]:
    """(rank, world size) as `accelerate launch`, `torchrun` or a shell loop export them; (0, 1) alone."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world_size}: the rank must be from 0 to WORLD_SIZE - 1")
    return rank, world_size


def device_of_process(device: str) -> str:
    """`auto` on a machine with GPUs: this process's own, by its LOCAL_RANK; else `device`."""
    import torch

    if device == "auto" and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return device


def wait_for_all() -> None:
    """Return when every process of this launch has come here, for the only time: none can wait for the others again.

    For days, if need be: one share of the images may be far slower than another.
    """
    from accelerate import PartialState

    state = PartialState(timeout=timedelta(days=7))
    state.wait_for_everyone()
    state.destroy_process_group()  # left open, its threads can abort a process at its very end
