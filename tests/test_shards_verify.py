"""`verify` sees every flipped byte and every lie of a faulty writer; strict mode never gives out a wrong vector."""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards_maker import judge, make_release, reseal, rewrite, sha_of

from pipeline.indexing.table import SCHEMA, Index, IndexUnusable
from pipeline.indexing.writer import write_index
from shards import DamagedRelease, ReleaseError, open_release
from shards import verify as checks
from shards.manifest import parse
from shards.verify import verify
from student.data import pairs

FLIPS = 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flips") / "r"
    make_release(folder, rows_per_group=16, part_bytes=4000)
    return folder


def test_every_flipped_byte_is_detected(folder):
    assert verify(folder) == []
    images = [sha_of(i) for i in range(60)]
    truth = open_release(folder, strict=True).lookup(images)[0]
    files = sorted(folder.iterdir())
    sizes = [path.stat().st_size for path in files]
    rng = random.Random(1)
    # Every file gets its share, small ones too: half of the flips by file, half by size.
    targets = [rng.choice(files) for _ in range(FLIPS // 2)] + rng.choices(files, sizes, k=FLIPS // 2)
    for path in targets:
        whole = path.read_bytes()
        at = rng.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        try:
            assert verify(folder), f"byte {at} of {path.name}"
            with pytest.raises(ReleaseError, match=path.name.replace(".", r"\.")):
                open_release(folder, strict=True)
        finally:
            path.write_bytes(whole)
    assert np.array_equal(open_release(folder, strict=True).lookup(images)[0], truth)


def test_an_altered_caption_is_not_read_even_without_strict(folder):
    """Page checksums are written, and verified where pages are read."""
    part = folder / "features-00000.parquet"
    whole = part.read_bytes()
    column = pq.read_metadata(part).row_group(0).column(4)
    at = column.data_page_offset + column.total_compressed_size - 3
    assert column.path_in_schema == "captions.list.element.text"
    part.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    try:
        release = open_release(folder)
        with pytest.raises(DamagedRelease, match="(?i)features-00000.parquet.*crc"):
            release.captions(release.sha256s()[0])
    finally:
        part.write_bytes(whole)


def load(folder) -> dict:
    return parse((folder / "manifest.json").read_bytes(), folder)


def vectors_with(value):
    def change(old: pa.Table) -> pa.Table:
        flat = old["embedding"].combine_chunks().flatten().to_numpy().copy()
        flat[40] = value
        field = old.schema.field("embedding")
        return old.set_column(4, field, pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type))

    return change


def texts_of(make):
    def change(old: pa.Table) -> pa.Table:
        captions = old["captions"].combine_chunks()
        flat = captions.flatten()
        fields = [flat.field(i) for i in range(4)]
        fields[1] = make(fields[1])
        struct = pa.StructArray.from_arrays(fields, fields=list(flat.type))
        lists = pa.ListArray.from_arrays(captions.offsets, struct, type=captions.type)
        return old.set_column(3, old.schema.field("captions"), lists)

    return change


def not_utf8(texts: pa.Array) -> pa.Array:
    _, offsets, data = texts.buffers()
    content = bytearray(data.to_pybytes())
    content[5] = 0xFF
    return pa.Array.from_buffers(pa.string(), len(texts), [None, offsets, pa.py_buffer(bytes(content))])


TABLES = {
    **{f"vector {value}": (vectors_with(np.float16(value)), "unit") for value in ("nan", "inf", "-inf", "60000", "5")},
    "texts not utf-8": (texts_of(not_utf8), "Invalid UTF8"),
    "a text that swells": (
        texts_of(lambda texts: pa.array(["0" * (40 << 20), *texts.to_pylist()[1:]])), "larger than any"
    ),
    "rows lost": (lambda old: old.slice(3), "18 rows"),
    "no rows": (lambda old: old.slice(0, 0), "21 rows"),
    "rows doubled": (lambda old: pa.concat_tables([old, old]), "6 row groups"),
    "a row for another": (lambda old: old.take([0, *range(len(old) - 1)]), "ascending"),
    "order reversed": (lambda old: old.take(list(range(len(old) - 1, -1, -1))), "ascending"),
    "column lost": (lambda old: old.drop_columns("width"), "schema"),
    "other type": (lambda old: old.set_column(1, "width", old["width"].cast("int64")), "schema"),
    "nulls": (lambda old: old.set_column(1, "width", pa.nulls(len(old), pa.int32())), "schema"),
    "upper case": (
        lambda old: old.set_column(0, old.schema.field(0), pa.compute.utf8_upper(old["image_sha256"])), "begins with"
    ),
    "no hashes": (lambda old: old.set_column(0, old.schema.field(0), pa.array(["x"] * len(old))), "ascending"),
    "no footer keys": (lambda old: old.replace_schema_metadata(None), "mixed releases"),
    "embedding as text": (lambda old: old.set_column(4, "embedding", pa.array(["0"] * len(old))), "schema"),
    "more columns": (lambda old: old.append_column("x", pa.array(range(len(old)))), "schema"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), TABLES.values(), ids=TABLES.keys())
def test_a_part_of_a_faulty_or_hostile_writer(tmp_path, change, words, monkeypatch):
    monkeypatch.setattr(checks, "_GROUP_BYTES", 16 << 20)
    make_release(tmp_path / "r", rows_per_group=7, part_bytes=4000)
    rewrite(tmp_path / "r", change)
    problems = judge(tmp_path / "r")
    assert any(words in problem for problem in problems), problems


def test_a_wrong_index_wrong_aliases_and_strange_files_are_caught(tmp_path):
    make_release(tmp_path / "r")
    index = np.load(tmp_path / "r" / "index.npy")
    index[3, 7] += 1
    np.save(tmp_path / "r" / "index.npy", index)
    reseal(tmp_path / "r")
    problems = "\n".join(verify(tmp_path / "r"))
    assert "differs from index.npy" in problems and "aliases.parquet: 1 rows name images" in problems
    make_release(tmp_path / "s")
    (tmp_path / "s" / "notes.txt").write_text("hello")
    assert verify(tmp_path / "s") == ["notes.txt: not part of the release"]
    (tmp_path / "s" / "notes.txt").unlink()
    manifest = load(tmp_path / "s")
    manifest["parts"][0]["vectors"]["embedding"][0] += 2
    reseal(tmp_path / "s", manifest)
    assert "differs between the mapped bytes" in verify(tmp_path / "s")[0]


def test_the_trainer_verifies_a_release_once(tmp_path, monkeypatch):
    """A flipped vector ends a training before it begins; what was sound is known by inodes, sizes and times."""
    make_release(tmp_path / "r", rows_per_group=7, part_bytes=4000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    judged = []
    monkeypatch.setattr(pairs, "verify", lambda folder: judged.append(folder) or verify(folder))
    for _ in range(2):
        assert len(pairs.read_release(tmp_path / "r")) == 60 and len(judged) == 1
    part = tmp_path / "r" / "features-00001.parquet"
    whole, at = part.read_bytes(), load(tmp_path / "r")["parts"][1]["vectors"]["embedding"][1]
    part.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for _ in range(2):
        with pytest.raises(pairs.TrainDataError, match="features-00001.parquet: altered"):
            pairs.read_release(tmp_path / "r")
    part.write_bytes(whole)
    assert len(pairs.read_release(tmp_path / "r")) == 60 and len(judged) == 4
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # where nothing can be remembered
    assert len(pairs.read_release(tmp_path / "r")) == 60 and len(judged) == 5


def test_a_rotten_index_is_not_read(tmp_path):
    """Every flip in the pages of index.parquet is told by trainer and stages, or changes nothing that they read."""
    file, rng = tmp_path / "index.parquet", random.Random(2)
    row = dict.fromkeys(SCHEMA.names, "x") | {"split": "train", "status": "ok", "width": 9, "height": 9}
    write_index(({**row, "gt_path": f"{i}.png", "gt_sha256": sha_of(i)} for i in range(300)), file, lambda: True)
    whole, told = file.read_bytes(), 0

    def rows(file):
        return pa.concat_tables(block.rows for block in Index(file).blocks())

    sound = repr(pairs.read_pairs(file, "train")), rows(file)
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in (rng.randrange(4, pages) for _ in range(80)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :])
        for read, errors, before in (
            (lambda: repr(pairs.read_pairs(file, "train")), pairs.TrainDataError, sound[0]),
            (lambda: rows(file), IndexUnusable, sound[1]),
        ):
            try:
                assert read() == before
            except errors:
                told += 1
    assert told > 80
