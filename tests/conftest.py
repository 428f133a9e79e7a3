"""Settings for every test, inherited by the processes that tests start."""

import os

# Two cores, and often two test processes: more threads only wait for each other. The second is what the trainer keeps
# (student/cpu.py). OMP_THREAD_LIMIT is no way to say so: a backward pass that planned for two threads waits for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# The same numbers on a machine with a GPU: runs of this process are compared bit for bit with runs on the CPU.
os.environ.setdefault("ACCELERATE_USE_CPU", "1")
# No test may ask a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
