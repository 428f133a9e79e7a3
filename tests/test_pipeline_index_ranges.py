"""The index as one file and as a folder: the same rows, and any split into blocks gives the same images."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.indexing import writer
from pipeline.indexing.table import SCHEMA, Index, IndexUnusable
from pipeline.indexing.writer import write_index
from student.data.pairs import read_pairs


def row(image: int, path: int, status: str = "ok") -> dict:
    sha256 = hashlib.sha256(b"%d" % image).hexdigest() if status == "ok" else None
    values = {"dataset": f"d{path % 3}", "domain": "a_b", "task": "t", "split": "train", "gt_path": f"{path}.png"}
    return (
        dict.fromkeys(SCHEMA.names) | values | {"gt_sha256": sha256, "width": 8, "height": image + 1, "status": status}
    )


def seen(index: Path, images: int) -> list:
    """Every image with what stages ask of it, over all blocks."""
    found = []
    for block in Index(index).blocks(images):
        assert len(block) <= images and len(block.images) == len(block)
        assert all(block.low <= image < block.high for image in block.images.to_pylist())
        columns = (block.images.to_pylist(), block.first("height").to_pylist(), block.labels())
        found += [(*image, block.paths(number)) for number, image in enumerate(zip(*columns, strict=True))]
    return found


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(writer, "ONE_FILE", 10)
    monkeypatch.setattr(writer, "ROWS", 7)


@given(st.lists(st.integers(0, 40), min_size=11, max_size=60), st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_any_split_gives_the_same_images(tmp_path_factory, images, size):
    root = tmp_path_factory.mktemp("index")
    rows = [row(image, path) for path, image in enumerate(images)] + [row(0, 99, "unreadable")]
    with pytest.MonkeyPatch.context() as patch:
        write_index(iter(rows), root / "one.parquet", lambda: True)
        patch.setattr(writer, "ONE_FILE", 10)
        patch.setattr(writer, "ROWS", 7)
        write_index(iter(rows), root / "few.parquet", lambda: True, len(rows))
        patch.setattr(writer, "ONE_FILE", 0.5)
        write_index(iter(rows), root / "many.parquet", lambda: True, len(rows))
    expected = {}
    for given_row in rows[:-1]:
        expected.setdefault(given_row["gt_sha256"], (given_row["height"], "a b", []))[2].append(given_row["gt_path"])
    expected = [(sha, height, label, tuple(sorted(paths))) for sha, (height, label, paths) in sorted(expected.items())]
    one = read_pairs(root / "one.parquet", "train")
    assert len({len(path.stem) for path in (root / "many.parquet").iterdir() if path.stem != "none"} - {2}) == 0
    for name in ("one", "few", "many"):
        assert seen(root / f"{name}.parquet", size) == expected
        assert repr(read_pairs(root / f"{name}.parquet", "train")) == repr(one)
        assert pq.read_table(root / f"{name}.parquet", partitioning=None).num_rows == len(rows)


def test_the_index_changes_as_a_whole(small_files, tmp_path):
    """File to folder, folder to folder, folder to file; what is not accepted leaves the one before."""
    place, rows = tmp_path / "index.parquet", [row(image, image) for image in range(30)]
    for number, expected, folder in ((3, 3, False), (30, 30, True), (20, 20, True), (5, 5, False)):
        assert write_index(iter(rows[:number]), place, lambda: True, expected)
        assert len(seen(place, 7)) == number and place.is_dir() == folder
        assert not write_index(iter(rows), place, lambda: False, 30)
        assert len(seen(place, 7)) == number
        assert [path.name for path in tmp_path.iterdir()] == ["index.parquet"]


def test_mistakes_are_named(small_files, tmp_path):
    write_index((row(0, path, "unreadable") for path in range(20)), tmp_path / "bad.parquet", lambda: True, 20)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    (tmp_path / "folder").mkdir()
    for name, told in (
        ("bad.parquet", "holds no usable image; see python -m pipeline.index --check"),
        ("other.parquet", "not an index: no column dataset, domain, gt_path"),
        ("none.parquet", "no index; run python -m pipeline.index first"),
        ("folder", "not a readable index"),
    ):
        with pytest.raises(IndexUnusable, match=told):
            list(Index(tmp_path / name).blocks())
