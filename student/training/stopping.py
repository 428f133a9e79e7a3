"""What may end a run before its last step: signals, the time limit, and data that does not come."""

import math
import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
        self._deadline = begun + 60 * max_minutes if max_minutes else math.inf
        self._waiting = False

    def __enter__(self) -> "StopRequest":
        handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note, signal.SIGALRM: self._expired}
        self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, error: object, *_details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if error is not None:
            # Data workers ignore signals, and may answer no more: this process could not end without them.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes their end for a failure
            for worker in multiprocessing.active_children():
                worker.kill()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = f"signal {signal.Signals(number).name}"
        if self._waiting:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _expired(self, _number: int, _frame: FrameType | None) -> None:
        raise TrainingStopped(
            f"no batch of data came in time ({self.reason or 'train.data_timeout'}); workers need shared memory: start "
            "the container with --shm-size=1g, or set train.num_workers: 0; where the images themselves come this "
            "slowly, raise train.data_timeout"
        )

    @contextmanager
    def waiting(self, limit: float) -> Iterator[None]:
        """Around a wait for data. Raises `TrainingStopped` inside it after `limit` seconds, and `PATIENCE` seconds
        after a signal: a worker that died in a full /dev/shm says nothing and answers nothing."""
        self._waiting = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE if self.reason else limit)
        try:
            yield
        finally:
            self._waiting = False
            signal.setitimer(signal.ITIMER_REAL, 0)

    def wanted(self) -> bool:
        if self.reason is None and time.monotonic() >= self._deadline:
            self.reason = "train.max_minutes"
        return self.reason is not None


def ignore_signals(_worker: int) -> None:
    """For data workers: a signal to all processes must not take them from under the step that is being finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
