"""What may end a run before its last step: signals, the time limit, and data that does not come."""

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
        self._deadline = begun + 60 * max_minutes if max_minutes else None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
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
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @contextmanager
    def waiting(self, limit: float) -> Iterator[None]:
        """Around a wait for data. Raises `TrainingStopped` inside it after `limit` seconds, and after `PATIENCE`
        seconds when a signal has come: a worker that died in a full /dev/shm says nothing and answers nothing."""
        begun = time.monotonic()

        def look(_number: int, _frame: FrameType | None) -> None:
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
    """For data workers: a signal to all processes must not take them from under the step that is being finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
