"""A release in an object store is the release of a folder: the same answers, and one whole release or none."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from processes import ROOT, printed
from s3 import upload
from shards_maker import make_release, sha_of

from shards import DamagedRelease, ReleaseError, copy_release, open_release
from shards.__main__ import main
from shards.combine import diff
from shards.verify import verify
from student import places
from student.data.pairs import TrainDataError, read_release


@pytest.fixture(scope="module")
def both(tmp_path_factory, bucket):
    """A release of several parts and row groups in a folder, and the same written to an address."""
    folder, many = tmp_path_factory.mktemp("r") / "r", {"rows_per_group": 7, "part_bytes": 4000}
    local, remote = (make_release(place, 0, 60, **many) for place in (folder, f"{bucket}/r"))
    assert local == remote and len(local["parts"]) > 2
    return folder, f"{bucket}/r"


def content(release) -> tuple:
    images = [*release.sha256s(), "f" * 64]
    few = [release.lookup(images[i : i + 2])[0].tobytes() for i in (0, 30, len(images) - 2)]
    batches = [batch.to_pylist() for size in (5, 4096) for batch in release.iter_batches(size)]
    vectors = [*release.lookup(images), release.vectors(), release.vectors(3, 11)]
    return (
        [array.tobytes() for array in vectors], few,
        [release.record(image) for image in images[:-1:9]], release.aliases("set1").to_pylist(), batches, len(release),
        images[-1] in release, release.captions(images[4]),
    )  # fmt: skip


def test_it_answers_as_a_folder_does(both, bucket):
    folder, address = both
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == {
        name: places.read(places.join(address, name)) for name in places.listed(address)
    }
    expected = content(open_release(folder))
    given = fsspec.filesystem("s3")
    for release in (open_release(address), open_release(address, strict=True), open_release(address, filesystem=given)):
        assert content(release) == expected
    assert content(open_release("lab/r", filesystem=given)) == expected
    assert content(pickle.loads(pickle.dumps(release))) == expected
    local, remote = (open_release(place).subset(dataset="set1") for place in both)
    assert content(local) == content(remote) and 0 < len(remote) < 60
    with ThreadPoolExecutor(8) as threads:
        assert len({str(found) for found in threads.map(content, [release] * 8)}) == 1
    assert verify(address) == [] and not diff(folder, address)["identity"]


def test_workers_ask_too(both):
    release = open_release(both[1])
    expected = release.lookup([sha_of(3)])[0].tobytes()
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply_async(_look, (release,)).get(60) == expected, method
    inherited = torch.utils.data.DataLoader(_Looks(release), batch_size=None, num_workers=2, timeout=60)
    assert [found for found in inherited] == [expected] * 6


class _Looks(torch.utils.data.Dataset):
    def __init__(self, release):
        self.release = release

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> bytes:
        return _look(self.release)


def _look(release) -> bytes:
    return release.lookup([sha_of(3)])[0].tobytes()


def test_a_lookup_asks_for_parts(tmp_path, bucket, log):
    """Of 30 MB of vectors, what two images need."""
    rows = 4000
    make_release(f"{bucket}/large", 0, rows, dim=4096)
    release = open_release(f"{bucket}/large")
    before = len(log.read_text().splitlines())
    vectors, found = release.lookup([sha_of(5), sha_of(rows - 1)])
    release.captions(sha_of(5))
    asked = [line for line in log.read_text().splitlines()[before:] if "features" in line]
    assert found.all() and len(asked) < 16
    assert np.array_equal(release.vectors()[release.lookup_rows([sha_of(5)])[0]][0], vectors[0].astype(np.float16))


def test_copies_and_commands(both, tmp_path, bucket, capsys):
    folder, address = both
    copy_release(address, tmp_path / "here")
    copy_release(tmp_path / "here", f"{bucket}/there")
    assert main(["copy", f"{bucket}/there", str(tmp_path / "again")]) == 0
    for name in os.listdir(folder):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert main(["verify", address]) == 0 and main(["info", address]) == 0 and main(["diff", address, str(folder)]) == 0
    for place, name in ((str(folder), "a"), (address, "b")):
        for form in ("npy", "jsonl", "csv"):
            assert main(["export", place, str(tmp_path / f"{name}.{form}"), "--format", form]) == 0
    for form in ("npy", "jsonl", "csv"):
        assert (tmp_path / f"a.{form}").read_bytes() == (tmp_path / f"b.{form}").read_bytes()
    assert main(["merge", address, str(folder), f"{bucket}/merged"]) == 0 and verify(f"{bucket}/merged") == []


def test_faults_are_named(both, tmp_path, bucket, capsys):
    folder, _ = both
    for place, message in (
        (f"{bucket}/nothing", "no such release; give the address"),
        ("s3://nobodys/r", "s3://nobodys/r: "),
        ("nowhere://r", "pass open_release.*filesystem="),
    ):
        with pytest.raises(ReleaseError, match=message) as error:
            open_release(place)
        assert "\n" not in str(error.value)
        assert main(["verify", place]) == 2
    upload(folder, f"{bucket}/hurt")
    part = f"{bucket}/hurt/features-00001.parquet"
    whole = places.read(part)
    places.write_whole(part, whole[:-9])
    with pytest.raises(DamagedRelease, match="features-00001.parquet: .* bytes instead of"):
        open_release(f"{bucket}/hurt")
    places.write_whole(part, whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    assert any("altered" in problem for problem in verify(f"{bucket}/hurt"))
    with pytest.raises(DamagedRelease, match="altered"):
        copy_release(f"{bucket}/hurt", tmp_path / "never")
    assert not (tmp_path / "never").exists()
    places.remove(part)
    with pytest.raises(DamagedRelease, match="missing, although"):
        open_release(f"{bucket}/hurt")
    places.write_whole(f"{bucket}/hurt/mine.txt", b"")
    with pytest.raises(ReleaseError, match="holds 'mine.txt', which is no part of a release"):
        make_release(f"{bucket}/hurt")


def test_who_has_it_open_notices_another(bucket):
    make_release(f"{bucket}/live", 0, 60, rows_per_group=7)
    release = open_release(f"{bucket}/live")
    make_release(f"{bucket}/live", 1, 61, rows_per_group=7)  # of the same sizes
    for ask in (
        lambda: release.lookup([sha_of(3)]),
        lambda: release.vectors(),
        lambda: release.captions(sha_of(3)),
        lambda: release.aliases(),
        lambda: next(release.iter_batches()),
        lambda: pickle.loads(pickle.dumps(release)),
    ):
        with pytest.raises(ReleaseError, match="open it again"):
            ask()


# The writer kills itself where it opens its k-th file to publish it.
WRITER = textwrap.dedent(
    """
    import os, signal, sys
    from shards_maker import make_release
    seen, stop_at = 0, int(sys.argv[2])
    def watch(event, args):
        global seen
        if event == "open" and "release-" in str(args[0]) and isinstance(args[1], str) and "r" in args[1]:
            seen += 1
            if seen == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    make_release(sys.argv[1], 30, 90, rows_per_group=16, part_bytes=4000)
    print(seen)
    """
)


def test_a_killed_publisher_leaves_one_whole_release_or_none(bucket):
    place = f"{bucket}/killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}

    def write_new(stop_at: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", WRITER, place, str(stop_at)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    def state() -> str:
        try:
            return open_release(place, strict=True).manifest["manifest_sha256"] if not verify(place) else "none"
        except ReleaseError:
            return "none"

    old = make_release(place, 0, 60)["manifest_sha256"]
    opens = int(write_new(0).stdout)
    new, states = state(), []
    for stop_at in range(opens - 8, opens + 1):
        make_release(place, 0, 60)
        assert write_new(stop_at).returncode == -9
        states.append(state())
    assert new != old and set(states) == {old, "none"} and state() == "none"
    assert "its writing never finished" in verify(place)[0]
    assert make_release(place, 0, 60)["manifest_sha256"] == old == state()


def test_training_copies_it_once(both, bucket, tmp_path, monkeypatch, log):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = content(open_release(both[0]))
    assert content(read_release(both[1])) == expected
    before = len(log.read_text().splitlines())
    assert content(read_release(both[1])) == expected
    assert len(log.read_text().splitlines()) - before < 25
    with pytest.raises(TrainDataError, match="no such release.*; run python -m pipeline.embed"):
        read_release(f"{bucket}/nothing")


def test_it_needs_nothing_but_pyarrow(both):
    """As strangers install it: without fsspec."""
    script = "import sys; sys.modules['fsspec'] = sys.modules['s3fs'] = None\n"
    script += f"import json, shards; print(json.dumps(shards.open_release({both[1]!r}).captions({sha_of(3)!r})))"
    assert json.loads(printed(ROOT, "-c", script)) == open_release(both[0]).captions(sha_of(3))
