"""A CPU's memory and threads: the C library's allocator, what is free, what each process may use."""

import ctypes
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Parameter numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Keep freed activations in the process instead of handing them back to the kernel; returns whether that worked.

    A training step on a CPU allocates and frees the same hundreds of megabytes again and again. By default glibc maps
    and unmaps every large block, and the kernel zeroes each page anew: 8,000 page faults a step of a small NAFNet.
    Without them a step took 0.22 s instead of 0.42 s (2 cores, batch 12 of 64x64). Values do not change.
    Other C libraries have no `mallopt`; there nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1


def use_all_cores() -> None:
    """Share this machine's cores among its training processes.

    `accelerate launch` sets OMP_NUM_THREADS to 1 where nobody set it, and half of a two-core laptop would idle. Hence
    OMP_NUM_THREADS cannot be believed; MKL_NUM_THREADS, which torch reads too, can: it is kept where it is set.
    """
    import torch  # here, because image files are read where torch is not needed

    if "MKL_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["MKL_NUM_THREADS"]))
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def free_bytes() -> int:
    """Memory that can still be taken: within the container's limit, where there is one."""
    import psutil

    free = psutil.virtual_memory().available
    try:  # cgroup v2; a container that may use 4 GB still sees all of the host's memory
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        counts = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(counts["inactive_file"]))  # files read before are given up on demand
    except (OSError, ValueError, KeyError):  # no cgroup, or no limit ("max")
        pass
    return max(free, 0)


def resident_bytes() -> int:
    """Memory that this process holds."""
    import psutil

    return psutil.Process().memory_info().rss
