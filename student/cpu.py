"""The C library's memory allocator and the threads, set up for training on a CPU."""

import ctypes
import os

import torch

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
    if "MKL_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["MKL_NUM_THREADS"]))
        return
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
