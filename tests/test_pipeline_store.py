"""The caption store: a part is whole or absent; whatever happens to one is seen, set aside, and redone."""

import errno
import os
import random
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.captioning import store as caption_store
from pipeline.captioning.store import SCHEMA, STATUSES, PerspectiveStore, hash_ranges
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


def test_round_trip(tmp_path):
    store_with(tmp_path, [row(2), row(1)], [row(3, "bad_image")])
    store = reopened(tmp_path)
    assert store.statuses() == {sha256(1): "ok", sha256(2): "ok", sha256(3): "bad_image"}
    assert store.rows()[sha256(2)] == row(2)
    assert (store.directory / "fingerprint.json").is_file() and store.directory.name == store.fingerprint


def test_every_single_flipped_byte_is_seen(tmp_path):
    store = store_with(tmp_path, [row(number, caption=f"caption {number}") for number in range(8)])
    part = store.parts[0].path
    good = part.read_bytes()
    for position in random.Random(0).sample(range(len(good)), 200):
        part.write_bytes(good[:position] + bytes([good[position] ^ 1 << position % 8]) + good[position + 1 :])
        damaged = reopened(tmp_path)
        assert damaged.statuses() == {}, f"byte {position} flipped unseen"
        assert damaged.set_aside[0].name == part.name + ".bad" and not part.exists()
        damaged.set_aside[0].unlink()
    part.write_bytes(good)
    assert len(reopened(tmp_path).statuses()) == 8


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_part_costs_only_its_own_images(tmp_path, keep):
    store = store_with(tmp_path, [row(1)], [row(2)])
    part = store.parts[0].path
    part.write_bytes(part.read_bytes()[:keep])
    store = reopened(tmp_path)
    assert store.statuses() == {sha256(2): "ok"} and len(store.set_aside) == 1
    store.append([row(1)], "another", {})
    assert reopened(tmp_path).statuses() == {sha256(1): "ok", sha256(2): "ok"}


def test_a_part_of_another_fingerprint_is_not_believed(tmp_path):
    store_with(tmp_path, [row(1)])
    other = PerspectiveStore(tmp_path, "content", IDENTITY | {"prompt": "What else?"})
    part = other.append([row(2, caption="made under another prompt")], "r", {})
    part.rename(reopened(tmp_path).directory / part.name)
    assert reopened(tmp_path).statuses() == {sha256(1): "ok"}


def test_foreign_files_are_kept(tmp_path):
    directory = store_with(tmp_path, [row(1)]).directory
    (directory / "notes.txt").write_text("mine")
    (directory / "results.parquet").write_bytes(b"mine too")
    store = reopened(tmp_path)
    assert store.statuses() == {sha256(1): "ok"}
    assert (directory / "notes.txt").read_text() == "mine"
    assert (directory / "results.parquet.bad").read_bytes() == b"mine too"


def test_what_was_set_aside_is_never_overwritten(tmp_path):
    part = store_with(tmp_path, [row(1)]).parts[0].path
    for content in (b"first", b"second", b"third"):
        part.write_bytes(content)
        reopened(tmp_path)
    assert {path.read_bytes() for path in part.parent.glob("*.bad")} == {b"first", b"second", b"third"}


def test_a_crash_before_the_rename_leaves_nothing_that_counts(tmp_path, monkeypatch):
    store = store_with(tmp_path, [row(1)])

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        store.append([row(2)], "r", {})
    monkeypatch.undo()
    assert sorted(path.suffix for path in store.directory.iterdir()) == [".json", ".parquet"]
    assert reopened(tmp_path).statuses() == {sha256(1): "ok"}


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path):
    store = store_with(tmp_path, [row(1)])
    old, young = store.directory / ".part-a.tmp", store.directory / ".part-b.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    reopened(tmp_path)
    assert not old.exists() and young.exists()


def test_a_clock_that_is_ahead_deletes_nothing_that_is_being_written(tmp_path, monkeypatch):
    store = store_with(tmp_path, [row(1)])
    (store.directory / ".part-b.tmp").write_bytes(b"half")
    monkeypatch.setattr(time, "time", lambda: 9e9)
    reopened(tmp_path)
    assert (store.directory / ".part-b.tmp").exists()


def test_a_temporary_file_that_vanishes_ends_nobody(tmp_path):
    store = store_with(tmp_path, [row(1)])
    (store.directory / ".part-a.tmp").symlink_to("gone")  # listed, and no more there when it is looked at
    assert reopened(tmp_path).statuses() == {sha256(1): "ok"}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_store_on_a_disk_that_may_only_be_read_is_read(tmp_path):
    store = store_with(tmp_path, [row(1)], [row(2)])
    damaged = store.parts[0].path
    damaged.write_bytes(damaged.read_bytes()[:-1])
    (store.directory / ".part-a.tmp").write_bytes(b"half")
    os.utime(store.directory / ".part-a.tmp", (1, 1))
    if subprocess.run(["mount", "--bind", tmp_path, tmp_path]).returncode:
        pytest.skip("no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
        store = reopened(tmp_path)
        assert len(store.statuses()) == 1 and store.set_aside == [damaged]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_network_disk_that_refuses_to_flush_folders_keeps_what_is_written(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", refuse_folders)
    assert reopened(store_with(tmp_path, [row(1)]).directory.parent).statuses() == {sha256(1): "ok"}


def test_page_checksums_are_written(tmp_path):
    part = store_with(tmp_path, [row(1, caption="a red cat")]).parts[0].path
    content = bytearray(part.read_bytes())
    metadata = pq.read_metadata(part).row_group(0).column(SCHEMA.names.index("image_sha256"))
    content[metadata.data_page_offset + metadata.total_compressed_size - 20] ^= 1
    part.write_bytes(bytes(content))
    with pytest.raises(OSError, match="(?i)crc|checksum|corrupt"):
        caption_store._read(part, None)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(STATUSES)), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_of_several_rows_the_best_counts_and_among_equals_the_latest(tmp_path_factory, attempts):
    root = tmp_path_factory.mktemp("store")
    store = store_with(root, *([row(image, status, caption=str(n))] for n, (image, status) in enumerate(attempts)))
    for image in {image for image, _ in attempts}:
        ranked = [(STATUSES.index(status), -n) for n, (other, status) in enumerate(attempts) if other == image]
        best, number = min(ranked)
        assert store.statuses()[sha256(image)] == STATUSES[best]
        assert store.rows()[sha256(image)]["caption"] == str(-number)


@pytest.mark.parametrize("n_images", [0, 1, 10_000, 10_001, 1_000_000])
def test_hash_ranges_cover_every_hash_once(n_images):
    ranges = list(hash_ranges(n_images))
    assert ranges[0][0] == "" and ranges[-1][1] > "f" * 64
    assert all(high == low for (_, high), (low, _) in zip(ranges, ranges[1:], strict=False))
    assert len(ranges) == max(1, -(-n_images // 10_000))


def test_rows_by_ranges_equal_all_rows(tmp_path):
    store = store_with(tmp_path, [row(n) for n in range(0, 200, 2)], [row(n) for n in range(1, 200, 2)])
    merged = {}
    for low, high in hash_ranges(70_000):
        merged |= store.rows(low, high)
    assert merged == store.rows() and len(merged) == 200


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
    assert reopened(tmp_path).statuses() == {sha256(1): "ok"}
    assert not list(store.directory.glob(".*"))
