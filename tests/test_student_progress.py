"""The one progress bar: a bar on a terminal, lines elsewhere, nothing where it is not wanted."""

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

from student import progress as module
from student.progress import progress

CODE = """
import time
from student.progress import progress
with progress("working", 12, done=2) as advance:
    for step in range(5):
        advance(note="loss [0.5]")
        time.sleep(0.1)
    advance(0, within=0.5)
    time.sleep(0.2)
"""


def test_a_terminal_shows_a_bar_with_rate_time_and_note():
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160", "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", CODE], stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while True:
            said += os.read(ours, 4096)
    assert process.wait() == 0
    for part in (b"working", b"7/12", b"/s", b"0:00:0", b"loss [0.5]"):
        assert part in said, said[-500:]


def test_a_log_file_gets_a_line_now_and_then_with_the_work_of_this_run_as_rate(monkeypatch, capsys):
    monkeypatch.setattr(module, "LINE_SECONDS", 10)
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("train", 100, done=50, rank=1) as advance:
        for _ in range(6):
            advance(note="loss 1")
    assert capsys.readouterr().err.splitlines() == [
        "train [1]: 53/100, 4.0 s each, 3.1 min left, loss 1",
        "train [1]: 56/100, 4.0 s each, 2.9 min left, loss 1",
    ]
    with progress("train", 100, shown=False) as advance:
        advance(60)
    assert capsys.readouterr().err == ""
