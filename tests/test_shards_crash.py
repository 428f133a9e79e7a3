"""kill -9 at any point of writing leaves the old release or the new one."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shards_maker import make_release

from shards import open_release

# One process forks a writer for each point; the writer kills itself at its k-th touch of the file system, as seen by
# Python's audit events (open, rename, remove, mkdir, the look-up of the call that swaps the folders, ...).
WRITER = textwrap.dedent(
    """
    import json, os, signal, sys
    from pathlib import Path
    from shards_maker import make_release
    from shards import open_release, staging
    from shards.verify import verify

    folder, how = Path(sys.argv[1]), sys.argv[2]
    if how == "two renames":
        staging._exchange = lambda one, other: False
    seen = 0

    def write_new(stop_at):
        def watch(event, args):
            global seen
            if event.startswith(("os.", "open", "shutil.", "ctypes.", "fcntl.")):
                seen += 1
                if seen == stop_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        make_release(folder, 30, 90, rows_per_group=16, part_bytes=4000, memory_bytes=4000)

    def fork_writer(stop_at):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            write_new(stop_at)
            os.write(write, str(seen).encode())
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        os.close(write)
        return status, os.read(read, 20).decode()

    def state():
        if how == "two renames" and not folder.exists():
            return "previous" if verify(folder.with_name(".r.previous")) == [] else "lost"
        problems = verify(folder)
        return problems or open_release(folder, strict=True).manifest["manifest_sha256"]

    make_release(folder, 0, 60)
    old = state()
    events = int(fork_writer(0)[1])
    new = state()
    states = []
    # Around the swap every event, before it a few.
    for stop_at in [*range(5, events - 40, max(1, events // 8)), *range(max(1, events - 40), events + 1)]:
        make_release(folder, 0, 60)
        status, _ = fork_writer(stop_at)
        states.append(state() if os.WTERMSIG(status) == signal.SIGKILL else f"status {status}")
    make_release(folder, 0, 60)
    print(json.dumps({"old": old, "new": new, "states": states, "left": os.listdir(folder.parent)}))
    """
)


@pytest.mark.parametrize("how", ["exchange", "two renames"])
def test_a_killed_writer_leaves_one_whole_release(tmp_path, how):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "r"), how]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Where folders cannot be exchanged, there is a moment at which the old one waits beside its place.
    allowed = {found["old"], found["new"]} | ({"previous"} if how == "two renames" else set())
    assert found["old"] != found["new"] and set(found["states"]) == allowed
    assert found["left"] == ["r"]  # what killed writers left, the next writer removed


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
