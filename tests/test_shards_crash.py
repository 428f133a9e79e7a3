"""kill -9 at any point of writing leaves the old release or the new one."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shards_maker import make_release

from shards import open_release
from shards.verify import verify

# One process forks a writer for each point; the writer kills itself at its k-th touch of the file system, as seen by
# Python's audit events (open, rename, remove, mkdir, listdir, the ctypes call that swaps the folders, ...).
WRITER = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    from shards_maker import make_release
    from shards import staging

    folder, exchange, stop_at, seen = Path(sys.argv[1]), sys.argv[2] == "exchange", int(sys.argv[3]), 0
    if not exchange:
        staging._exchange = lambda one, other: False
    def watch(event, args):
        global seen
        if event.startswith(("os.", "open", "shutil.", "ctypes.call", "fcntl.")) or event == "ctypes.dlsym":
            seen += 1
            if seen == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    make_release(folder, 30, 90, rows_per_group=16, part_bytes=4000, memory_bytes=4000)
    print(seen)
    """
)


def run_writer(folder: Path, how: str, stop_at: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", WRITER, str(folder), how, str(stop_at)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_a_killed_writer_leaves_one_whole_release(tmp_path, how):
    folder = tmp_path / "r"
    old = make_release(folder, 0, 60)["manifest_sha256"]
    whole = run_writer(folder, how, 0)
    assert whole.returncode == 0, whole.stderr
    events = int(whole.stdout)
    new = open_release(folder, strict=True).manifest["manifest_sha256"]
    assert events > 40 and new != old
    found = set()
    # The last twenty events surround the swap: every second one of them; before it a few.
    for stop_at in [*range(5, events - 20, max(1, events // 5)), *range(events - 20, events + 1, 3)]:
        make_release(folder, 0, 60)
        assert run_writer(folder, how, stop_at).returncode == -signal.SIGKILL
        if how == "two renames" and not folder.exists():
            assert (tmp_path / ".r.previous").is_dir()  # the next writer puts it back before it begins
            found.add("between")
            continue
        assert verify(folder) == []
        found.add({old: "old", new: "new"}[open_release(folder, strict=True).manifest["manifest_sha256"]])
    assert {"old", "new"} <= found
    make_release(folder, 0, 60)
    assert [path.name for path in tmp_path.iterdir()] == ["r"]  # what killed writers left is gone


def test_a_killed_swap_is_undone_by_the_next_writer(tmp_path):
    """Where folders cannot be exchanged, the old release waits in `.NAME.previous`, even if the next writer fails."""
    folder = tmp_path / "r"
    old = make_release(folder, 0, 60)["manifest_sha256"]
    folder.rename(tmp_path / ".r.previous")
    with pytest.raises(ValueError, match="interrupted"):
        make_release(folder, 0, 60, progress=interrupted)
    assert open_release(folder, strict=True).manifest["manifest_sha256"] == old


def interrupted(rows: int) -> None:
    raise ValueError("interrupted")


def test_open_readers_keep_the_release_they_opened(tmp_path):
    make_release(tmp_path / "r", 0, 60)
    release = open_release(tmp_path / "r")
    before = release.vectors().copy()
    again = open_release(tmp_path / "r")
    again.vectors()
    make_release(tmp_path / "r", 30, 90)
    assert (release.vectors() == before).all() and (again.vectors() == before).all()
    assert len(open_release(tmp_path / "r")) == 60
