"""`verify` sees every flipped byte and every lie of a faulty writer; strict mode never gives out a wrong vector."""

import hashlib
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shards_maker import make_release, sha_of

from shards import DamagedRelease, ReleaseError, open_release
from shards.manifest import dump, parse
from shards.schema import vector_offsets
from shards.verify import verify

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


def reseal(folder, **changes) -> None:
    """Make the sums right again, as a faulty writer would."""
    manifest = load(folder) | changes
    for entry in [*manifest["parts"], *manifest["files"]]:
        content = (folder / entry["file"]).read_bytes()
        entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_bytes(dump(manifest))


def rewrite(folder, change) -> None:
    """The first part with a changed table, otherwise laid out as the format says."""
    path = folder / "features-00000.parquet"
    table = change(pq.read_table(path, partitioning=None))
    plain = {
        name: "none" if name.startswith("embedding") else "zstd" for name in ("embedding.list.element", "image_sha256")
    }
    pq.write_table(
        table, path, compression=plain, use_dictionary=False, write_page_checksum=True, data_page_size=1 << 30
    )


def doubled_norm(table: pa.Table) -> pa.Table:
    field = table.schema.field("embedding")
    flat = table["embedding"].combine_chunks().flatten().to_numpy() * np.float16(2)
    return table.set_column(4, field, pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.take(list(range(59, -1, -1))), "ascending"),
        (lambda table: table.take([0, *range(59)]), "ascending"),
        (doubled_norm, "unit length"),
        (lambda table: table.slice(1), "59"),
        (lambda table: table.drop_columns("width"), "schema"),
    ],
)
def test_a_faulty_writer_is_caught(tmp_path, change, message):
    make_release(tmp_path / "r")
    rewrite(tmp_path / "r", change)
    manifest, name = load(tmp_path / "r"), "features-00000.parquet"
    if found := vector_offsets(pq.read_metadata(tmp_path / "r" / name), name):  # as such a writer would find them
        manifest["parts"][0]["vectors"] = found
    reseal(tmp_path / "r", parts=manifest["parts"])
    problems = verify(tmp_path / "r")
    assert any(message in problem for problem in problems), problems


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
    reseal(tmp_path / "s", parts=manifest["parts"])
    assert "vectors do not begin" in verify(tmp_path / "s")[0]
