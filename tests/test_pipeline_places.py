"""Index, caption store and embedding cache in an object store: the stages do what they do on a disk."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_project import INDEX_SCHEMA, Project

from pipeline import caption as stage
from pipeline.captioning import run as caption_run
from pipeline.embedding.cache import EmbeddingCache
from pipeline.indexing import writer
from pipeline.indexing.table import Index, IndexUnusable
from pipeline.indexing.writer import write_index
from student.data.pairs import read_pairs
from student.places import join, listed, read, remove, write_whole


def images(place: str) -> list[str]:
    return [sha256 for block in Index(place).blocks() for sha256 in block.images.to_pylist()]


def test_an_index_is_written_and_replaced(bucket, monkeypatch):
    monkeypatch.setattr(writer, "ONE_FILE", 10)
    place = f"{bucket}/an/index.parquet"
    with pytest.raises(IndexUnusable, match="no index; run python -m pipeline.index first"):
        Index(place).block("", "g")
    fixed = dict.fromkeys(INDEX_SCHEMA.names, "x") | {"status": "ok", "width": 9, "height": 9, "split": "train"}
    rows = [fixed | {"gt_sha256": hashlib.sha256(b"%d" % n).hexdigest(), "gt_path": f"{n}.png"} for n in range(40)]
    for number in (5, 40, 30, 7):  # a file, a folder, another folder, a file again
        assert write_index(rows[:number], place, lambda: True, number)
        assert images(place) == sorted(row["gt_sha256"] for row in rows[:number])
        assert len(read_pairs(place, "train")) == number
        assert not write_index(rows, place, lambda: False, 40) and len(images(place)) == number


def test_captions_go_on_where_a_disk_left_off_and_damage_is_set_aside(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path)
    write_whole(f"{bucket}/index.parquet", (tmp_path / "index.parquet").read_bytes())
    there = [f"paths.index={bucket}/index.parquet", f"paths.caption_store={bucket}/store"]
    there = [word for place in there for word in ("--set", place)]

    def caption(*arguments: str) -> tuple[str, str]:
        stage.main([*there, *arguments])
        return tuple(capsys.readouterr())

    stage.main([])
    capsys.readouterr()
    assert "6 of 6 images lack a caption" in caption("--plan")[0] and not listed(f"{bucket}/store")
    assert "6 new of 6 images × 2 perspectives, 0 found" in caption()[0]
    rows = {}
    for local in (tmp_path / "store").glob("*/part-*"):
        folder = f"{bucket}/store/{local.parent.name}"
        assert listed(folder) == ["fingerprint.json", *listed(folder, ".parquet")]
        for name in listed(folder, ".parquet"):
            for row in pq.read_table(pa.BufferReader(read(join(folder, name)))).to_pylist():
                rows[row["image_sha256"], row["perspective"]] = tuple(row[key] for key in KEYS)
    assert rows == project.captions()
    assert "captions/s as last" in caption("--plan", "--set", "caption.perspectives.brightness=Is it dark?")[0]
    with monkeypatch.context() as patch:
        patch.setattr(caption_run, "load_captioner", None)
        assert "0 new of 6 images × 2 perspectives, 6 found in the store" in caption()[0]
    part = join(folder, listed(folder, ".parquet")[0])
    write_whole(part, read(part)[:-1])
    out, error = caption()
    assert "6 new of 6" in out and f"set aside {part}.bad: damaged" in error
    assert read(f"{part}.bad") and "0 new of 6" in caption()[0]


KEYS = ("caption", "n_tokens", "finish_reason", "status", "error")


def test_the_cache_keeps_vectors_and_drops_what_is_damaged(bucket):
    images, digests = [f"{n << 228:064x}" for n in range(10)], [f"digest {n}" for n in range(10)]
    vectors = np.arange(60, dtype=np.float16).reshape(10, 2, 3)
    EmbeddingCache(f"{bucket}/cache", "f", 2, 3).append(images, digests, [[]] * 10, vectors)
    held = EmbeddingCache(f"{bucket}/cache", "f", 2, 3).find(pa.array(images), digests)
    assert held.found.all() and (held.vectors == vectors).all()
    (part,) = listed(f"{bucket}/cache/f")
    write_whole(f"{bucket}/cache/f/{part}", read(f"{bucket}/cache/f/{part}")[:-1])
    assert not EmbeddingCache(f"{bucket}/cache", "f", 2, 3).find(pa.array(images), digests).found.any()
    assert listed(f"{bucket}/cache/f") == []
    remove(f"{bucket}/cache/f/{part}")  # it may be gone already
