"""What may end a run before its last step: signals, the time limit, and losses that are not finite."""

import math
import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

PATIENCE = 10
"""Seconds that a batch may still take after a signal."""


class TrainingStopped(RuntimeError):
    """Too many bad steps, or no data; the message names what happened, where, and the remedy."""


class StopRequest:
    """SIGTERM, SIGINT or the time limit, noticed between steps; the run then saves and exits cleanly.

    As a context: signals are noticed inside, and handled as before outside. A second SIGINT interrupts at once.
    """

    def __init__(self, begun: float, max_minutes: float | None):
        self.reason: str | None = None
        self._deadline = begun + 60 * max_minutes if max_minutes else None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_error: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        self.reason = f"signal {signal.Signals(number).name}"
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def waiting(self, limit: float) -> Iterator[None]:
        """Around a wait for data. Raises `TrainingStopped` inside it after `limit` seconds, and after `PATIENCE`
        seconds when a signal has come: a worker that died in a full /dev/shm says nothing and answers nothing."""
        begun = time.monotonic()

        def look(_number: int, _frame: Any) -> None:
            waited = time.monotonic() - begun
            if waited < (PATIENCE if self.reason else limit):
                return
            why = f", and {self.reason}" if self.reason else " (train.data_timeout)"
            raise TrainingStopped(
                f"no batch of data for {waited:.0f} s{why}; workers need shared memory: start the container with "
                "--shm-size=1g, or set train.num_workers: 0; where the images themselves come this slowly, raise "
                "train.data_timeout"
            )

        before = signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, 1, 1)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def wanted(self) -> bool:
        if self.reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "train.max_minutes"
        return self.reason is not None


def ignore_signals(_worker: int) -> None:
    """For data workers: a signal to the whole job must not take them from under the step that is being finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_workers() -> None:
    """End data workers that no longer answer: this process could not end without them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a failure
    for worker in multiprocessing.active_children():
        worker.kill()


class BadSteps:
    """Counts steps whose loss or gradient is not finite, and stops the run after too many in a row."""

    def __init__(self, limit: int, total: int = 0):
        self.limit, self.total, self.in_a_row = limit, total, 0

    def good(self) -> None:
        self.in_a_row = 0

    def bad(self, step: int, terms: dict[str, float], grad_norm: float, suspects: list[str], accelerator: Any) -> None:
        """Every process calls this for a bad step; `suspects` are this process's samples that may have caused it."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.limit:
            names = [name for name, value in terms.items() if not math.isfinite(value)]
            what = f"loss terms {', '.join(names)}" if names else f"the gradient (norm {grad_norm})"
            samples = sorted(set(gather_object(suspects)))
            raise TrainingStopped(
                f"step {step}: {what} not finite, {self.in_a_row} steps in a row (train.max_bad_steps); samples: "
                f"{'; '.join(samples)}; nothing was updated and the last checkpoint is good: look at these files, or "
                "lower train.lr"
            )


def suspects(batch: dict[str, Tensor], restored: Tensor) -> Tensor:
    """Which rows [B] have an input, target, prior or result that is not finite."""
    parts = (batch["lq"], batch["gt"], batch["prior"], restored.detach())
    return ~torch.stack([part.isfinite().flatten(1).all(1) for part in parts]).all(0)
