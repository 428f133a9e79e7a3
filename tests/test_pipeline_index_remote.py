"""Images in an object store and in tars: the rows of the same files in folders, each object read once."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from picture_files import picture
from PIL import Image
from processes import run
from s3 import upload

from pipeline.captioning.decode import decode as decode_for_captions
from pipeline.index import index_rows, listed
from pipeline.indexing.config import IndexConfig
from pipeline.indexing.probe import probe
from pipeline.indexing.probe_cache import ProbeCache
from pipeline.indexing.writer import write_index
from student import places
from student.data.cache import decode, open_images
from student.data.pairs import TrainDataError, data_fingerprint, read_pairs
from student.params import ParamsError
from student.places.tars import member, members

NAMES = ["a.png", "b.png", "z.png", "deep/er/c.png", "deep/été #1+2.png", "x y.png"]
CLEAN = {"degradation": {"kind": "identity"}}


@pytest.fixture(scope="module")
def data(tmp_path_factory, bucket):
    """A folder of pairs with what lies about in folders, and the same at `s3://lab/data`; gt and lq as tars too."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate([*NAMES, ".hidden.png", "@eaDir/a.png"]):
        for side in ("gt", "lq"):
            picture(folder / side / name, 2 * number + (side == "lq"), (30, 24))
    (folder / "gt/broken.png").write_bytes(b"no image")
    (folder / "lq/broken.png").write_bytes(b"no image")
    (folder / "gt/notes.txt").write_text("x")
    (folder / "gt/alone.png").write_bytes((folder / "gt/a.png").read_bytes())
    (folder / "pairs.csv").write_text("gt,lq\ngt/a.png,lq/a.png\ngt/b.png,lq/none.png\n")
    for side in ("gt", "lq"):
        with tarfile.open(folder / f"{side}.tar", "w") as archive:
            archive.add(folder / side, "./")
    upload(folder, f"{bucket}/data")
    return folder


def section(root, split: dict, **more) -> dict:
    dataset = {"name": "d", "domain": "natural", "task": "denoising", "splits": {"train": split}}
    return {"root": str(root), "datasets": [dataset], **more}


def index(root: str, cache: Path, split: dict, **more) -> list[dict]:
    config, _, faults = listed(IndexConfig(**section(root, split, workers=2, **more)))
    assert not faults, faults
    return [row for row, _ in index_rows(config, ProbeCache(cache))]


def told(rows: list[dict], root: str) -> list[dict]:
    """The rows with what is below the root alone."""
    return [json.loads(json.dumps(row).replace(json.dumps(f"{root}/")[1:-1], "")) for row in rows]


@pytest.mark.parametrize(
    "split",
    [
        {"gt": "gt", "lq": "lq"},
        {"gt": "g*", "lq": ["lq/*.png", "lq/**/er", "lq/deep"]},
        {"gt": ".", "lq": ".", "pair": {"lq": "lq/{id}", "gt": "gt/{id}"}},
        {"csv": "pairs.csv"},
        {"gt": "gt.tar", "lq": "lq.tar"},
    ],
)
def test_a_bucket_gives_the_rows_of_a_folder(data, bucket, tmp_path, split):
    here, there = index(data, tmp_path / "a", split), index(f"{bucket}/data", tmp_path / "b", split)
    assert told(here, str(data)) == told(there, f"{bucket}/data")
    assert len(here) > 1 and {row["status"] for row in here} != {"ok"}


def test_a_tar_gives_the_rows_of_its_folder(data, bucket, tmp_path):
    """Also where one side is a folder, the other a tar, elsewhere than the root."""
    folders = index(data, tmp_path / "a", {"gt": "gt", "lq": "lq"})
    keys = ("status", "gt_sha256", "width", "height", "mode")
    for split in ({"gt": "gt.tar", "lq": "lq"}, {"gt": f"{bucket}/data/gt.tar", "lq": "l*.tar"}):
        rows = index(data, tmp_path / "a", split)
        assert sorted(str([row[key] for key in keys]) for row in rows) == sorted(
            str([row[key] for key in keys]) for row in folders
        )
        good = [row for row in rows if row["status"] == "ok"]
        for row in good:
            name = member(row["gt_path"]).name
            assert np.array_equal(decode(row["gt_path"]), decode(str(data / "gt" / name)))
            assert decode_for_captions(row["gt_sha256"], [row["gt_path"]], 10**8, np.asarray)[1] == "ok"
        assert {member(row["gt_path"]).name for row in good} == set(NAMES)


def reads(log: Path) -> list[str]:
    """Objects that were fetched, of all that was asked since the last call."""
    lines = log.read_text().splitlines()
    done = getattr(reads, "done", 0)
    reads.done = len(lines)
    return [line.split('"')[1].split()[1] for line in lines[done:] if '"GET /lab/' in line and "list-type" not in line]


def test_an_unchanged_object_is_read_once(data, bucket, tmp_path, log):
    place = f"{bucket}/{tmp_path.name}"
    upload(data / "gt", f"{place}/gt")
    split = {"gt": "gt", **CLEAN}
    reads(log)
    first = index(place, tmp_path / "cache", split)
    assert len(reads(log)) == 8 == len(first)
    places.write_whole(f"{place}/gt/a.png", (data / "gt/b.png").read_bytes())
    places.write_whole(f"{place}/gt/b.png", (data / "gt/b.png").read_bytes())  # the same bytes, later
    places.remove(f"{place}/gt/z.png")
    second = index(place, tmp_path / "cache", split)
    assert sorted(name.rpartition("/")[2] for name in reads(log)) == ["a.png", "broken.png"]
    assert len(second) == 7 and second[0]["gt_sha256"] == second[2]["gt_sha256"] == first[2]["gt_sha256"]


def test_a_tar_is_listed_without_its_contents_and_read_by_parts(bucket, tmp_path, log):
    rng, packed = np.random.default_rng(0), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(3):
            entry = tarfile.TarInfo(f"{number:04}-{'ü' * 90}.png")
            entry.size = 3_000_000
            archive.addfile(entry, io.BytesIO(rng.bytes(entry.size)))
    places.write_whole(f"{bucket}/big/shard.tar", packed.getvalue())
    reads(log)
    found = members(f"{bucket}/big/shard.tar")
    assert [one.size for one in found] == [3_000_000] * 3 and len(reads(log)) <= 8
    assert found[1].content() == packed.getvalue()[found[1].offset :][:3_000_000] and len(reads(log)) == 1
    assert member(str(found[2])) == found[2]


def archive(*names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as whole:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 512
            whole.addfile(entry, io.BytesIO(bytes(range(256)) * 2))
    return packed.getvalue()


WHOLE = archive("a.png", "b.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tar.gz", b"\x1f\x8b", "compressed, so no member"),
        ("a.tar", b"\x1f\x8b" + bytes(2000), "it is compressed: unpack it to a plain .tar"),
        ("a.tar", b"", "not a whole tar archive .*copy it again"),
        ("a.tar", WHOLE[:800], "not a whole tar archive .*copy it again"),
        ("a.tar", WHOLE[:1024], "it ends, or is damaged, at byte 1024"),
        ("a.tar", WHOLE[:2048], "it ends, or is damaged, at byte 2048"),
        ("a.tar", WHOLE[:1030] + b"!" + WHOLE[1031:], "it ends, or is damaged, at byte 1024"),
    ],
)
def test_archives_that_cannot_be_read_in_parts_are_refused(bucket, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    upload(tmp_path, f"{bucket}/{tmp_path.name}")
    for root in (tmp_path, f"{bucket}/{tmp_path.name}"):
        with pytest.raises(ParamsError, match=message) as error:
            next(index_rows_of(root, name, tmp_path / "cache"))
        assert "\n" not in str(error.value)


def index_rows_of(root, gt: str, cache: Path):
    return index_rows(IndexConfig(**section(root, {"gt": gt, **CLEAN}, workers=1)), ProbeCache(cache))


def test_a_folder_of_tars_says_how_they_are_named(data, tmp_path, capsys):
    shutil.copy(data / "gt.tar", tmp_path / "shard-0.tar")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    assert len(list(index_rows_of(tmp_path, ".", data / "cache"))) == 1
    assert f"1 .tar; name archives as {tmp_path}/*.tar" in capsys.readouterr().err
    assert len(list(index_rows_of(tmp_path, "shard-*.tar", data / "cache"))) == 8


def test_a_saved_hugging_face_data_set_lies_in_a_bucket(data, bucket, tmp_path):
    from datasets import Dataset, Features
    from datasets import Image as Column

    files = [data / "gt" / name for name in ("a.png", "b.png")]
    rows = {"image": [{"bytes": file.read_bytes(), "path": None} for file in files]}
    Dataset.from_dict(rows, features=Features({"image": Column()})).save_to_disk(tmp_path / "saved/hf")
    upload(tmp_path / "saved", f"{bucket}/saved")
    split = {"hf": {"path": "hf"}, **CLEAN}
    found = index(f"{bucket}/saved", tmp_path / "cache", split, extracted=str(tmp_path / "extracted"))
    assert [Path(row["gt_path"]).read_bytes() for row in found] == [file.read_bytes() for file in files]


def test_an_object_that_vanished_is_one_line_everywhere(bucket, tmp_path):
    gone = f"{bucket}/gone.png"
    assert probe(gone, 10**8).error == f"{gone}: no such object"
    assert decode_for_captions("0" * 64, [gone], 10**8, np.asarray) == (gone, "error", f"{gone}: no such object")
    with pytest.raises(TrainDataError, match="gone.png: no such object; run the index stage"):
        decode(gone)
    assert "s3://nobodys/a.png: The specified bucket does not exist" in probe("s3://nobodys/a.png", 10**8).error


SILENT = (  # environment, then roots and folders below them with what is said of each
    ({}, [
        ("s3://nobodys/data", "gt", "s3://nobodys/data: no such folder"),
        ("s3://lab/data/none", "gt", "no such folder; point it at your data"),
        ("s3://lab/data", "nothing", "s3://lab/data/nothing does not exist; s3://lab/data holds gt, gt.tar, lq"),
        ("gs://lab/data", "gt", "gs:// needs fsspec"),
    ]),
    ({"AWS_ACCESS_KEY_ID": ""}, [("s3://lab/data", "gt", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")]),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
     [("s3://lab/data", "gt", "is AWS_ENDPOINT_URL right, and the store up")]),
)  # fmt: skip


@pytest.mark.parametrize(("environment", "asked"), SILENT, ids=["store", "key", "address"])
def test_a_store_that_does_not_answer_is_one_line(data, bucket, tmp_path, monkeypatch, environment, asked):
    for number, (root, gt, _) in enumerate(asked):
        params = {"index": section(root, {"gt": gt, **CLEAN})}
        (tmp_path / f"{number}.yaml").write_text(json.dumps(params))
    if not environment.get("AWS_ACCESS_KEY_ID", "me"):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        environment = {}
    code = f"from pipeline.index import main; print(*[main(['--params', f'{{n}}.yaml']) for n in range({len(asked)})])"
    done = run(tmp_path, "-c", code, HOME=str(tmp_path), **environment)
    assert done.stdout.split() == ["1"] * len(asked) and "Traceback" not in done.stderr, done.stderr
    for (*_, message), said in zip(asked, done.stderr.split("index: ")[1:], strict=True):
        assert message in said and said.count("\n") <= 2, done.stderr


def test_training_reads_what_it_reads_from_a_folder(data, bucket, tmp_path):
    pairs = []
    for root, split in ((str(data), {"gt": "gt", "lq": "lq"}), (f"{bucket}/data", {"gt": "gt.tar", "lq": "lq"})):
        rows = index(root, tmp_path / "cache", split)
        assert write_index(iter(rows), tmp_path / "index.parquet", lambda: True)
        pairs.append(read_pairs(tmp_path / "index.parquet", "train"))
    here, there = pairs
    for mode in ("none", "memory", "memmap", "memmap"):
        images = [open_images(mode, one, str(tmp_path / "cached")) for one in pairs]
        by_name = []
        for one, pair in zip(images, pairs, strict=True):
            paths = zip(pair.gt_path, pair.lq_path, strict=True)
            by_name.append(dict(zip(pair.gt_sha256, [(one[gt], one[lq]) for gt, lq in paths], strict=True)))
        assert by_name[0].keys() == by_name[1].keys() and len(by_name[0]) == 6
        for sha256, both in by_name[0].items():
            assert all(np.array_equal(*two) for two in zip(both, by_name[1][sha256], strict=True))
    before = data_fingerprint(there, None)
    assert before == data_fingerprint(there, None) != data_fingerprint(here, None), "the addresses are part of it"
