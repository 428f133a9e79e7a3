"""Whatever a release folder holds: `verify` tells, opening and reading raise ReleaseError, and nothing else happens."""

import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards_maker import judge, make_release, reseal

from shards import DamagedRelease, open_release
from shards.manifest import dump, parse
from shards.verify import verify

PART = "features-00001.parquet"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "r"
    make_release(folder, rows_per_group=7, part_bytes=4000)
    assert verify(folder) == []
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "r")
    return tmp_path / "r"


def set_in(path: str, value):
    def change(manifest: dict) -> None:
        *way, last = path.split(".")
        for key in way:
            manifest = manifest[int(key) if isinstance(manifest, list) else key]
        manifest[int(last) if isinstance(manifest, list) else last] = value

    return change


MANIFESTS = {
    path + f"={value!r:.30}": set_in(path, value)
    for path, values in {
        "rows": (2**63, 2**52, -1, 0, 61, "60", True, 60.0, 10**30, None, []),
        "dim": (0, 8, 2**40, -16, None, "16", [16]),
        "group_rows": (0, 6, 8, 2**31, -7, "7"),
        "aliases": (10**15, -1, 59, None),
        "apart": ("content", ["mood"], ["content"], [1], None, {}),
        "fingerprints": ([], {}, {"content": 5}, {"content": None}, "x"),
        "teacher_fingerprint": (7, "f" * 64, "", None),
        "embedding_fingerprint": (["a"], "x" * 10**6),
        "parts": ([], None, [{}], [None], {}, "features-00000.parquet", 5),
        "parts.0": (None, [], 5, "x"),
        "parts.1.file": ("../../etc/passwd", "/etc/passwd", "README.md", "features-00001.parquet\0", "a/b", 5, ""),
        "parts.1.bytes": (-1, 0, 2**62, "9", None),
        "parts.1.rows": (0, -1, 2**40, 1, "21"),
        "parts.1.first": (5, "", "zz", "0" * 64),
        "parts.1.last": (None, "x" * 64, "f" * 64),
        "parts.1.sha256": ("0" * 64, None, ""),
        "parts.1.vectors": ({}, [], None, {"embedding": []}, {"embedding": None}, {"embedding": {"0": 1}}),
        "parts.1.vectors.embedding.0": (-1, 0, 3, 10**9, 2**62, 1.5, "7", None, [1]),
        "files": ([], {}, None, [None], [{"file": "x"}]),
        "files.0.file": ("../aliases.parquet", "index.npy", ".", 7),
        "stats": (None, [], {}, {"captions": []}),
        "stats.captions.content": (None, {}, {"n": "x"}),
        "stats.sources": (None, {}, [None], [{"domain": 3}]),
        "teacher": (None, [], "x"),
        "created_by": (None, 5, {}),
        "format_version": (None, "1", [], -1, 2, True, 1.5),
    }.items()
    for value in values
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_sealed_manifest_that_lies(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_bytes(dump(manifest))
    assert judge(folder)


RAW = {
    "empty": b"", "null": b"null", "list": b"[]", "number": b"5", "not utf-8": b"\xff\xfe\x00\x01",
    "deep": b"[" * 10**6,
    "deep object": b'{"format_version":1,"a":' * 10**5, "huge number": b'{"format_version":' + b"1" * 5000 + b"}",
    "NaN": b'{"format_version":1,"dim":NaN}', "half a surrogate": b'{"format_version":1,"a":"\\ud800"}',
    "deep, closed": b'{"format_version":1,"a":' + b"[" * 900 + b"]" * 900 + b"}", "zeros": bytes(1000),
}  # fmt: skip


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
def test_a_manifest_that_is_none(folder, raw):
    (folder / "manifest.json").write_bytes(raw)
    assert judge(folder)
    (folder / "manifest.json").write_bytes((raw + b"\n") * 2)
    assert judge(folder)


@pytest.mark.parametrize("name", ["manifest.json", "README.md", "index.npy", "aliases.parquet", PART])
@pytest.mark.parametrize("how", ["gone", "short", "long", "empty", "folder", "pipe", "dangling", "loop", "zeros"])
def test_a_file_that_is_none(folder, name, how):
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how in ("dangling", "loop"):
        path.symlink_to("nowhere" if how == "dangling" else name)
    elif how != "gone":
        content = {"short": whole[:-9], "long": whole + b"x", "empty": b"", "zeros": bytes(len(whole))}[how]
        path.write_bytes(content)
        if name not in ("manifest.json", "README.md"):
            assert any(name in problem for problem in judge(folder))
            reseal(folder)
    if not (name == "README.md" and how in ("short", "long", "empty", "zeros")):
        assert judge(folder)


INDEXES = {
    "other type": lambda index: index.astype(np.int64), "objects": lambda index: index.astype(object),
    "transposed": lambda index: np.asfortranarray(index), "short": lambda index: index[:, :-1],
    "flat": lambda index: index.reshape(-1), "unsorted": lambda index: np.ascontiguousarray(index[:, ::-1]),
    "zeros": lambda index: index * 0, "largest": lambda index: index * 0 + np.uint64(2**64 - 1),
    "big-endian": lambda index: index.astype(">u8"),
}  # fmt: skip


@pytest.mark.parametrize("change", INDEXES.values(), ids=INDEXES.keys())
def test_an_index_of_a_hostile_writer(folder, change):
    np.save(folder / "index.npy", change(np.load(folder / "index.npy")), allow_pickle=True)
    reseal(folder)
    assert judge(folder)


HEADS = [b"(4, 60)|(4, 9999999999999999999)", b"(4, 60)|(4, -1)", b"(4, 60)|((((((((", b"<u8|<f8", b"\x01\x00|\x03\x00"]


@pytest.mark.parametrize("change", HEADS)
def test_an_index_with_a_hostile_head(folder, change):
    old, new = change.split(b"|")
    content = (folder / "index.npy").read_bytes()
    assert old in content
    (folder / "index.npy").write_bytes(content.replace(old, new, 1))
    reseal(folder)
    assert judge(folder)


@pytest.mark.parametrize("name", [PART, "aliases.parquet", "index.npy"])
def test_bytes_drawn_anew_under_a_right_seal(folder, name):
    """300 of them; a checksum of a page, the parser or the check of the content says so, or nothing was changed."""
    path, draw = folder / name, random.Random(name)
    whole = path.read_bytes()
    for _ in range(100):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 1, 8])):
            # Half of them in the footer, where the parsers are.
            low = len(whole) - 1500 if name.endswith("parquet") and draw.random() < 0.5 else 0
            content[draw.randrange(max(low, 0), len(whole))] = draw.randrange(256)
        path.write_bytes(content)
        reseal(folder)
        judge(folder)


@pytest.mark.parametrize("change", ["null", "other schema", "unknown images", "unknown key"])
def test_aliases_of_a_hostile_writer(folder, change):
    path = folder / "aliases.parquet"
    old = pq.ParquetFile(path).read()
    if change == "null":
        new = old.set_column(0, "path", pa.nulls(60, pa.string()))
    elif change == "other schema":
        new = old.drop_columns("domain")
    elif change == "unknown images":
        new = old.set_column(3, old.schema.field(3), pa.array(["0" * 64] * 60))
    else:
        new = old.set_column(3, old.schema.field(3), pa.array(["../x"] * 60))
    pq.write_table(new, path)
    reseal(folder)
    assert judge(folder)


@pytest.mark.parametrize("entry", [b"", b"[]", b"5", b"[5]", b'[{"relpath": "manifest.json", "md5": "../../x"}]', b"["])
def test_a_cache_entry_that_is_none(tmp_path, entry):
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "cd.dir").write_bytes(entry)
    with pytest.raises(DamagedRelease):
        open_release(tmp_path / "ab" / "cd.dir")
    assert verify(tmp_path / "ab" / "cd.dir")


def test_what_systems_lay_into_folders_is_no_damage(folder):
    for name in (".DS_Store", "._index.npy", ".gitattributes", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    assert verify(folder) == [] and len(open_release(folder, strict=True)) == 60
    make_release(folder, 0, 9)
    assert len(open_release(folder)) == 9 and (folder / ".gitattributes").read_bytes() == b"x"
    (folder / "notes.txt").write_text("x")
    assert verify(folder) == ["notes.txt: not part of the release"]


def test_the_shapes_are_those_of_a_sound_release(folder):
    parse((folder / "manifest.json").read_bytes(), folder)  # and the tests above fail by what they change
