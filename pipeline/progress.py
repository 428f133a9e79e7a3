"""How a long run shows that it lives: a bar on a terminal, a line a minute in a log file."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A live bar on stderr with rate and estimated time; yields `advance(n)`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rate = TextColumn("{task.fields[rate]:.1f}/s")
    with Progress(*columns, rate, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task, started, done = progress.add_task(label, total=total, rate=0.0), time.monotonic(), 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            progress.update(task, advance=n, rate=done / max(time.monotonic() - started, 1e-9))

        yield advance


@contextlib.contextmanager
def log_lines(label: str, total: int, rank: int = 0, every_s: float = 60.0) -> Iterator[Callable[[int], None]]:
    """A line on stderr every `every_s`, for logs; yields `advance(n)`."""
    started = shown = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        now = time.monotonic()
        if now - shown >= every_s:
            shown, rate = now, done / (now - started)
            left = (total - done) / rate / 60
            print(f"{label} [{rank}]: {done}/{total}, {rate:.1f}/s, about {left:.0f} min left", file=sys.stderr)

    yield advance


def progress(label: str, total: int, rank: int = 0) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    """`bar` on a terminal for the first process, else `log_lines`; use as `with progress(...) as advance`."""
    return bar(label, total) if sys.stderr.isatty() and rank == 0 else log_lines(label, total, rank)
