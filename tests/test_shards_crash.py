"""kill -9 at any point of writing leaves the old release or the new one, and open readers keep the one they opened."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from shards_maker import make_release

from shards import open_release

# One process forks a writer for each point; the writer kills itself at its k-th touch of the file system, as seen by
# Python's audit events (open, rename, remove, mkdir, ...).
WRITER = textwrap.dedent(
    """
    import json, os, signal, sys
    from pathlib import Path
    from shards_maker import make_release
    from shards import open_release
    from shards.verify import verify

    folder = Path(sys.argv[1])
    seen = 0

    def write_new(stop_at):
        def watch(event, args):
            global seen
            if event.startswith(("os.", "open", "shutil.", "fcntl.")):
                seen += 1
                if seen == stop_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        make_release(folder, 30, 90, rows_per_group=16, part_bytes=4000)

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
        if not folder.exists():
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


def test_a_killed_writer_leaves_one_whole_release(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "r")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    # Between the two renames the old release waits beside its place.
    assert found["old"] != found["new"] and set(found["states"]) == {found["old"], found["new"], "previous"}
    assert found["left"] == ["r"]  # what killed writers left, the next writer removed


def test_a_killed_swap_is_undone_by_the_next_writer(tmp_path):
    """The old release that waits in `.NAME.previous` is put back, even if the next writer fails."""
    folder = tmp_path / "r"
    old = make_release(folder, 0, 60)["manifest_sha256"]
    folder.rename(tmp_path / ".r.previous")
    with pytest.raises(ValueError, match="interrupted"):
        make_release(folder, 0, 60, progress=interrupted)
    assert open_release(folder, strict=True).manifest["manifest_sha256"] == old


def interrupted(rows: int) -> None:
    raise ValueError("interrupted")


def test_open_readers_keep_the_release_they_opened(tmp_path):
    for read_before in (False, True):
        make_release(tmp_path / "r", 0, 60, rows_per_group=7, part_bytes=4000)
        release = open_release(tmp_path / "r")
        before = content(release) if read_before else None
        make_release(tmp_path / "r", 30, 90, rows_per_group=7, part_bytes=4000)
        make_release(tmp_path / "s", 0, 60, rows_per_group=7, part_bytes=4000)
        assert content(release) == (before or content(open_release(tmp_path / "s")))
        shutil.rmtree(tmp_path / "r")
        assert content(release) == content(open_release(tmp_path / "s"))


def content(release) -> tuple:
    images = release.sha256s()
    vectors = [release.lookup(images)[0].tobytes(), b"".join(release.lookup([image])[0].tobytes() for image in images)]
    return (
        vectors,
        [release.record(image) for image in images],
        release.aliases().to_pylist(),
        release.vectors().tolist(),
    )


# Two releases of the same images in turn: the second has every vector negated and other captions.
REPLACER = """
import sys, time
from shards_maker import IDENTITY, make_aliases, make_rows
from shards import write_release
end, sign, n = time.monotonic() + float(sys.argv[2]), 1, 0
while time.monotonic() < end:
    rows = make_rows(0, 40)
    for row in rows:
        row["embedding"] = sign * row["embedding"]
        row["captions"][0]["text"] = f"sign {sign}"
    aliases = [(f"{sign}/{path}", *rest) for path, *rest in make_aliases(0, 40)]
    write_release(sys.argv[1], rows, aliases, **IDENTITY, dim=16, rows_per_group=7, part_bytes=4000)
    sign, n = -sign, n + 1
print(n)
"""
READER = """
import pickle, random, sys, time
from shards_maker import expected, sha_of
from shards import ReleaseError, open_release
end, seen, refused = time.monotonic() + float(sys.argv[2]), {1: 0, -1: 0}, 0
truth = {i: expected(i) for i in range(40)}
while time.monotonic() < end:
    release = open_release(sys.argv[1])  # at any moment there is one
    sign = None
    for _ in range(40):
        i = random.randrange(40)
        vectors, found = release.lookup([sha_of(i)] * random.choice([1, 20]))
        signs = {int(x) for x in (vectors @ truth[i]).round()}
        signs.add(int(release.captions(sha_of(i))["content"].removeprefix("sign ")))
        signs |= {int(path.split("/")[0]) for path in release.aliases()["path"].to_pylist()}
        assert found.all() and len(signs) == 1 and sign in (None, *signs), (sign, signs)
        [sign] = signs
        seen[sign] += 1
    try:
        assert int(pickle.loads(pickle.dumps(release)).captions(sha_of(0))["content"].removeprefix("sign ")) == sign
    except ReleaseError as error:
        assert "took its place" in str(error), error
        refused += 1
print(min(seen.values()), refused)
"""


def test_readers_never_see_two_releases_at_once(tmp_path):
    """A writer replaces the release all the time, and every open release goes on giving what it held."""
    make_release(tmp_path / "r", 0, 3)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}

    def start(code: str, seconds: int) -> subprocess.Popen:
        command = [sys.executable, "-c", code, str(tmp_path / "r"), str(seconds)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    writer = start(REPLACER, 9)
    while len(open_release(tmp_path / "r")) == 3:
        time.sleep(0.05)
    readers = [start(READER, 4) for _ in range(3)]
    for process in (*readers, writer):
        out, errors = process.communicate()
        assert process.returncode == 0, errors
        if process is not writer:
            fewest, refused = map(int, out.split())
            assert fewest > 20 and refused > 0
