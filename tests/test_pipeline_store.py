"""The caption store: a part is whole or absent; whatever happens to one is seen, set aside, and redone."""

import errno
import itertools
import os
import random
import re
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.captioning import store as caption_store
from pipeline.captioning.store import SCHEMA, STATUSES, PerspectiveStore
from student import files
from student.files import NotWritten

IDENTITY = {"model": {"sha256": "0" * 64}, "perspective": "content", "prompt": "What is it?"}


def sha256(number: int) -> str:
    return f"{number:02x}" * 32


def row(number: int, status: str = "ok", caption: str = "a cat") -> dict:
    values = {"image_sha256": sha256(number), "perspective": "content", "caption": caption, "n_tokens": 3}
    return dict.fromkeys(SCHEMA.names) | values | {"status": status, "batch_images": 1, "run": "r"}


def store_with(root: Path, *parts: list[dict]) -> PerspectiveStore:
    store = PerspectiveStore(root, "content", IDENTITY)
    for rows in parts:
        store.append(rows, "r", {"device": "cpu"})
    return store


def reopened(root: Path) -> PerspectiveStore:
    return PerspectiveStore(root, "content", IDENTITY)


def rows_of(store: PerspectiveStore, numbers=range(256)) -> dict[str, dict]:
    """The best row of each image that the store holds."""
    images = pa.array(sorted(map(sha256, numbers)))
    rows = store.best(images, [name for name in SCHEMA.names if name != "image_sha256"]).to_pylist()
    found = zip(images.to_pylist(), rows, strict=True)
    return {image: {"image_sha256": image, **row} for image, row in found if row["status"] is not None}


def statuses(store: PerspectiveStore) -> dict[str, str]:
    return {image: row["status"] for image, row in rows_of(store).items()}


def place(store: PerspectiveStore, part: int) -> Path:
    return Path(store.directory, store.parts[part].name)


def test_round_trip(tmp_path):
    store_with(tmp_path, [row(2), row(1)], [row(3, "bad_image")])
    store = reopened(tmp_path)
    assert statuses(store) == {sha256(1): "ok", sha256(2): "ok", sha256(3): "bad_image"}
    assert rows_of(store)[sha256(2)] == row(2)
    assert (Path(store.directory) / "fingerprint.json").is_file() and Path(store.directory).name == store.fingerprint


def test_every_single_flipped_byte_is_seen(tmp_path):
    store = store_with(tmp_path, [row(number, caption=f"caption {number}") for number in range(8)])
    part = place(store, 0)
    good = part.read_bytes()
    for position in random.Random(0).sample(range(len(good)), 200):
        part.write_bytes(good[:position] + bytes([good[position] ^ 1 << position % 8]) + good[position + 1 :])
        damaged = reopened(tmp_path)
        assert statuses(damaged) == {}, f"byte {position} flipped unseen"
        assert damaged.set_aside[0] == f"{part}.bad" and not part.exists()
        os.unlink(damaged.set_aside[0])
    part.write_bytes(good)
    assert len(statuses(reopened(tmp_path))) == 8


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_part_costs_only_its_own_images(tmp_path, keep):
    store = store_with(tmp_path, [row(1)], [row(2)])
    part = place(store, 0)
    part.write_bytes(part.read_bytes()[:keep])
    store = reopened(tmp_path)
    assert statuses(store) == {sha256(2): "ok"} and len(store.set_aside) == 1
    store.append([row(1)], "another", {})
    assert statuses(reopened(tmp_path)) == {sha256(1): "ok", sha256(2): "ok"}


def test_a_part_of_another_fingerprint_is_not_believed(tmp_path):
    store_with(tmp_path, [row(1)])
    other = PerspectiveStore(tmp_path, "content", IDENTITY | {"prompt": "What else?"})
    part = Path(other.append([row(2, caption="made under another prompt")], "r", {}))
    part.rename(Path(reopened(tmp_path).directory) / part.name)
    assert statuses(reopened(tmp_path)) == {sha256(1): "ok"}


def test_foreign_files_are_kept(tmp_path):
    directory = Path(store_with(tmp_path, [row(1)]).directory)
    (directory / "notes.txt").write_text("mine")
    (directory / "results.parquet").write_bytes(b"mine too")
    store = reopened(tmp_path)
    assert statuses(store) == {sha256(1): "ok"}
    assert (directory / "notes.txt").read_text() == "mine"
    assert (directory / "results.parquet.bad").read_bytes() == b"mine too"


def test_what_was_set_aside_is_never_overwritten(tmp_path):
    part = place(store_with(tmp_path, [row(1)]), 0)
    for content in (b"first", b"second", b"third"):
        part.write_bytes(content)
        statuses(reopened(tmp_path))
    assert {path.read_bytes() for path in part.parent.glob("*.bad")} == {b"first", b"second", b"third"}


def test_a_crash_before_the_rename_leaves_nothing_that_counts(tmp_path, monkeypatch):
    store = store_with(tmp_path, [row(1)])

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        store.append([row(2)], "r", {})
    monkeypatch.undo()
    assert sorted(path.suffix for path in Path(store.directory).iterdir()) == [".json", ".parquet"]
    assert statuses(reopened(tmp_path)) == {sha256(1): "ok"}


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path):
    store = store_with(tmp_path, [row(1)])
    old, young = Path(store.directory) / ".part-a.tmp", Path(store.directory) / ".part-b.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    reopened(tmp_path)
    assert not old.exists() and young.exists()


def test_a_clock_that_is_ahead_deletes_nothing_that_is_being_written(tmp_path, monkeypatch):
    store = store_with(tmp_path, [row(1)])
    (Path(store.directory) / ".part-b.tmp").write_bytes(b"half")
    monkeypatch.setattr(time, "time", lambda: 9e9)
    reopened(tmp_path)
    assert (Path(store.directory) / ".part-b.tmp").exists()


def test_a_temporary_file_that_vanishes_ends_nobody(tmp_path):
    store = store_with(tmp_path, [row(1)])
    (Path(store.directory) / ".part-a.tmp").symlink_to("gone")  # listed, and no more there when it is looked at
    assert statuses(reopened(tmp_path)) == {sha256(1): "ok"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_store_on_a_disk_that_may_only_be_read_is_read(tmp_path):
    store = store_with(tmp_path, [row(1)], [row(2)])
    damaged = place(store, 0)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (Path(store.directory) / ".part-a.tmp").write_bytes(b"half")
    os.utime(Path(store.directory) / ".part-a.tmp", (1, 1))
    if subprocess.run(["mount", "--bind", tmp_path, tmp_path]).returncode:
        pytest.skip("no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
        store = reopened(tmp_path)
        assert len(statuses(store)) == 1 and store.set_aside == [str(damaged)]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_network_disk_that_refuses_to_flush_folders_keeps_what_is_written(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", refuse_folders)
    assert statuses(reopened(Path(Path(store_with(tmp_path, [row(1)]).directory).parent))) == {sha256(1): "ok"}


def test_page_checksums_are_written(tmp_path):
    part = place(store_with(tmp_path, [row(1, caption="a red cat")]), 0)
    content = bytearray(part.read_bytes())
    metadata = pq.read_metadata(part).row_group(0).column(SCHEMA.names.index("image_sha256"))
    content[metadata.data_page_offset + metadata.total_compressed_size - 20] ^= 1
    part.write_bytes(bytes(content))
    with pytest.raises(OSError, match="(?i)crc|checksum|corrupt"):
        pq.read_table(part, page_checksum_verification=True, partitioning=None)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STATUSES)), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_of_several_rows_the_best_counts_and_among_equals_the_latest(tmp_path_factory, attempts):
    root = tmp_path_factory.mktemp("store")
    store = store_with(root, *([row(image, status, caption=str(n))] for n, (image, status) in enumerate(attempts)))
    for image in {image for image, _ in attempts}:
        ranked = [(STATUSES.index(status), -n) for n, (other, status) in enumerate(attempts) if other == image]
        best, number = min(ranked)
        assert statuses(store)[sha256(image)] == STATUSES[best]
        assert rows_of(store)[sha256(image)]["caption"] == str(-number)


@given(st.lists(st.integers(0, 255), min_size=1, unique=True), st.sets(st.integers(1, 255)))
@settings(max_examples=20, deadline=None)
def test_rows_by_ranges_equal_all_rows(tmp_path_factory, numbers, cuts):
    """Whatever the ranges, and whatever the parts: each image's row is found, and only there."""
    root = tmp_path_factory.mktemp("store")
    store_with(root, *([row(n) for n in some] for some in (numbers[::2], numbers[1::2], numbers[:3]) if some))
    store, merged = reopened(root), {}
    for low, high in itertools.pairwise([0, *sorted(cuts), 256]):
        merged |= rows_of(store, range(low, high))
    assert merged == rows_of(store) == {sha256(n): row(n) for n in numbers}


def test_only_the_parts_of_a_range_are_read(tmp_path, monkeypatch):
    store_with(tmp_path, *([row(n) for n in range(start, start + 16)] for start in range(0, 256, 16)))
    opened = []
    monkeypatch.setattr(caption_store, "read", lambda path: (opened.append(path), Path(path).read_bytes())[1])
    store = reopened(tmp_path)
    assert not opened, "opening a store is a listing"
    assert len(rows_of(store, range(40, 50))) == 10 and len(opened) == 2


def test_parts_of_version_0_1_are_read(tmp_path):
    """Their names carry no range; in doubt the later run counts, whatever its name looks like."""
    store = store_with(tmp_path, [row(1, caption="early"), row(2)])
    part = place(store, 0)
    part.rename(part.with_name(re.sub("part-.{8}-.{8}-", "part-", part.name)))
    assert [(p.first, p.last) for p in reopened(tmp_path).parts] == [("01" * 4, "02" * 4)]
    reopened(tmp_path).append([row(1, caption="late")], "s", {})
    assert {r["caption"] for r in rows_of(reopened(tmp_path)).values()} == {"late", "a cat"}
    damaged = next(Path(store.directory).glob("part-r-*"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert statuses(reopened(tmp_path)) == {sha256(1): "ok"} and len(reopened(tmp_path).parts) == 1


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(NotWritten, match="fingerprint.json: cannot be written: Not a directory"):
        store_with(tmp_path / "store", [row(1)])


def test_a_full_disk_keeps_what_was_written(tmp_path, monkeypatch):
    store = store_with(tmp_path, [row(1)])

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(NotWritten, match="cannot be written: No space left on device; what was written before is kept"):
        store.append([row(2)], "r", {})
    assert statuses(reopened(tmp_path)) == {sha256(1): "ok"}
    assert not list(Path(store.directory).glob(".*"))
