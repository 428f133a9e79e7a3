"""One process of many: which, and waiting for the others."""

import os


def process_of_many() -> tuple[int, int]:
    """(rank, world size) as `accelerate launch`, `torchrun` or a shell loop export them; (0, 1) alone."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK={rank} and WORLD_SIZE={world_size}: the rank must be from 0 to WORLD_SIZE - 1")
    return rank, world_size


def wait_for_all() -> None:
    """Return when every process of this launch has come here, for the only time: none can wait for the others again."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()  # left open, its threads can abort a process at its very end
