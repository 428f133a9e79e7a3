"""Settings for every test, inherited by the processes that tests start."""

import os

# Two cores, and often two test processes: more threads only wait for each other. The limit holds for the trainer too,
# which takes all cores: on a busy machine 30 toy steps took 107 s with two threads that spun for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_THREAD_LIMIT", "1")
# No test may ask a model hub.
os.environ["HF_HUB_OFFLINE"] = "1"
