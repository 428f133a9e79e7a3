"""Ctrl-C and SIGTERM end a run between two bytecodes of the model's work, never in the middle of a write."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence


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


def finish(command: Sequence[str], env: Mapping[str, str], capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command that saves when it is stopped, and wait until it has: `subprocess.run` kills it at Ctrl-C.

    It gets the terminal's Ctrl-C itself, and is handed SIGTERM, which a scheduler sends to this process alone. Raises
    `KeyboardInterrupt` when it has ended after one of them.
    """
    pipe = subprocess.PIPE if capture else None
    process, stopped = subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True), []

    def note(number: int, _frame) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:
            process.terminate()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        out, error = process.communicate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped:
        raise KeyboardInterrupt
    return subprocess.CompletedProcess(command, process.returncode, out, error)
