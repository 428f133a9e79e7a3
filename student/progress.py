"""How a long run shows that it lives: a bar on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 30


@contextmanager
def progress(label: str, total: int, done: int = 0, rank: int = 0, shown: bool = True) -> Iterator[Callable[..., None]]:
    """Yields `advance(n=1, note="", within=0)`: n more of `total` are done, and that share of the next one.

    `done`: of an earlier run. On stderr, with speed, time to go and `note`. Of several processes (`rank`) the first has
    the bar, the others lines.
    """
    begun = told = time.monotonic()
    first, bars, task = done, None, None  # rich's, on a terminal

    def advance(n: int = 1, note: str = "", within: float = 0.0) -> None:
        nonlocal done, told
        done, now = done + n, time.monotonic()
        rate = (done + within - first) / max(now - begun, 1e-9)
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each" if rate else ""
        if bars is not None:
            bars.update(task, completed=done + within, speed=speed, **({"note": note} if note else {}))
        elif shown and rate and now - told >= LINE_SECONDS:
            told, who = now, f"{label} [{rank}]" if rank else label
            left = f"{(total - done) / rate / 60:.1f} min left"
            print(f"{who}: {done}/{total}, {speed}, {left}{note and f', {note}'}", file=sys.stderr, flush=True)

    if not (shown and rank == 0 and sys.stderr.isatty()):
        yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    speed, note = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("speed", "note"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn(), note)
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown_bars:
        bars = shown_bars
        task = bars.add_task(label, total=total, completed=done, speed="", note="")
        yield advance
