"""SIGTERM to `teachonce train` alone, as a container's end or a scheduler sends it: the trainer saves first."""

import os
import signal
import subprocess
import sys

import toy_training as toy


def test_sigterm_reaches_the_trainer(tmp_path):
    toy.make_data(tmp_path)
    file = toy.write_params(tmp_path, max_steps=100_000, save_every=100_000, val_every=0, log_every=1)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    environment |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(toy.ROOT)}
    command = [sys.executable, "-m", "student.training.launch", "--params", str(file)]
    process = subprocess.Popen(command, env=environment, stdout=-1, text=True, start_new_session=True)
    try:
        toy.wait_for_rows(tmp_path / "student", 3, Alive(process))
        process.terminate()
        said = process.communicate(timeout=300)[0]
        assert process.returncode == 128 + signal.SIGTERM and "stopped by signal SIGTERM" in said
        assert list((tmp_path / "student/checkpoints").glob("*/step-*/meta.json"))
    finally:  # with a trainer that was left behind
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Alive:
    """A process of `subprocess`, as one of `multiprocessing` is asked."""

    def __init__(self, process):
        self.is_alive = lambda: process.poll() is None
