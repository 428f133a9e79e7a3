"""Ctrl-C and SIGTERM end a run between two bytecodes of the model's work, never in the middle of a write."""

import contextlib
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """Raised inside `Stop.interruptible()`. Not an `Exception`, so that no retry logic takes it for a failure."""


class Stop:
    """Installs handlers for SIGINT and SIGTERM; `signal` holds the one that came, if any."""

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._interruptible = False
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}

    def _handle(self, number: int, frame) -> None:
        self.signal = signal.Signals(number)
        if self._interruptible:
            raise Stopped

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work that may be abandoned: a signal that came before or comes now raises `Stopped`."""
        self._interruptible = True
        try:
            if self.signal is not None:
                raise Stopped
            yield
        finally:
            self._interruptible = False

    def restore(self) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)


class NeverStopped:
    """In place of `Stop` where signals are somebody else's business, such as Ray's."""

    interruptible = staticmethod(contextlib.nullcontext)
