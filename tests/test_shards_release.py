"""Writing and reading a release: what goes in comes out, whatever the order, and nothing is invented."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shards_maker import IDENTITY, expected, make_aliases, make_release, make_rows, sha_of

from shards import DamagedRelease, ReleaseConflict, ReleaseError, UnknownImage, open_release, write_release
from shards.arrays import to_float32
from shards.manifest import dump


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_come_back_by_hash(tmp_path):
    make_release(tmp_path / "r", rows_per_group=7, part_bytes=4000)
    release = open_release(tmp_path / "r", strict=True)
    assert len(release.manifest["parts"]) > 2 and len(release) == 60
    order = random.Random(0).sample(range(80), 80)  # twenty of them unknown
    vectors, found = release.lookup([sha_of(i) for i in order])
    assert vectors.dtype == np.float32 and found.tolist() == [i < 60 for i in order]
    for i, vector in zip(order, vectors, strict=True):
        assert np.abs(vector - (expected(i) if i < 60 else 0)).max() < 1e-3
    record = release.record(sha_of(10))
    assert (record["width"], record["height"]) == (20, 20)
    assert release.captions(sha_of(10)) == {"content": "A building, number 10.", "brightness": 'Bright, ünd "fair".'}
    assert [c["finish_reason"] for c in record["captions"]] == ["length", "length"]
    batches = pa.Table.from_batches(release.iter_batches(5))
    assert batches["image_sha256"].to_pylist() == release.sha256s() == sorted(sha_of(i) for i in range(60))
    stored = np.stack(batches["embedding"].to_numpy())
    assert np.array_equal(stored, release.vectors()) and np.array_equal(stored[3:9], release.vectors(3, 9))


def test_unknown_images_and_malformed_hashes_are_told_apart(tmp_path):
    make_release(tmp_path / "r")
    release = open_release(tmp_path / "r")
    with pytest.raises(UnknownImage, match="no captions for image 0000"):
        release.captions("0" * 64)
    assert isinstance(UnknownImage(), KeyError) and "0" * 64 not in release and sha_of(1) in release
    assert release.lookup([])[0].shape == (0, 16)
    assert release.lookup([sha_of(3).upper()])[1].all()
    for bad in (["abc"], [" " * 64], ["g" * 64], [None], sha_of(1), [sha_of(1)[:32], sha_of(2) + sha_of(1)[32:]]):
        with pytest.raises(ReleaseError, match="is"):
            release.lookup(bad)
    with pytest.raises(ReleaseError, match="no column 'embedding_colour'"):
        release.lookup([sha_of(1)], "embedding_colour")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**20), batches=st.integers(0, 9))
def test_equal_content_gives_equal_bytes(tmp_path, seed, batches):
    """With aliases and captions in any order, with doubled rows, as dicts or as record batches of any length."""
    shape = {"rows_per_group": 7, "part_bytes": 4000}
    if not (tmp_path / "a").exists():
        make_release(tmp_path / "a", **shape)
    shuffle = random.Random(seed)
    rows, aliases = make_rows(0, 60) + make_rows(5, 9), make_aliases(0, 60) + make_aliases(3, 30)
    rows.sort(key=lambda row: row["image_sha256"])
    shuffle.shuffle(aliases)
    for row in rows:
        shuffle.shuffle(row["captions"])
    if batches:
        rows = pa.table(
            {key: [r[key] for r in rows] for key in ("image_sha256", "width", "height", "captions", "embedding")}
        )
        rows = iter(rows.to_batches(max_chunksize=batches))
    write_release(tmp_path / "b", rows, aliases, **IDENTITY, dim=16, **shape)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_release_written_from_a_release_keeps_every_bit(tmp_path):
    """Vectors that were rounded once must not be normalised again."""
    make_release(tmp_path / "a")
    release = open_release(tmp_path / "a")
    write_release(tmp_path / "b", release.iter_batches(), [release.aliases()], **IDENTITY, dim=16)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_hashes_that_share_their_beginning_are_found(tmp_path):
    """sha256 never does this; the search must be right all the same."""
    rows = make_rows(0, 40)
    for i, row in enumerate(rows):
        row["image_sha256"] = f"{i // 8:016x}{i % 8 // 4:016x}{i % 4:032x}"
    write_release(tmp_path / "r", rows, [], **IDENTITY, dim=16)
    release = open_release(tmp_path / "r")
    vectors, found = release.lookup(
        [row["image_sha256"] for row in rows] + [f"{2:016x}{9:048x}", "f" * 64, "0" * 63 + "9"]
    )
    assert found.tolist() == [True] * 40 + [False] * 3
    truth = np.stack([row["embedding"] / np.linalg.norm(row["embedding"]) for row in rows])
    assert np.abs(vectors[:40] - truth).max() < 1e-3
    one_by_one = np.concatenate([release.lookup([row["image_sha256"]])[0] for row in rows])
    assert np.array_equal(one_by_one, vectors[:40])


def test_subsets_follow_the_aliases(tmp_path):
    make_release(tmp_path / "r", rows_per_group=7, part_bytes=4000)
    release = open_release(tmp_path / "r")
    medical = release.subset(domain="medical")
    assert sorted(medical.sha256s()) == sorted(sha_of(i) for i in range(60) if i % 3 == 2)
    both = release.subset(dataset="set1", domain=["medical", "natural"])
    chosen = [i for i in range(60) if i % 2 == 1 and i % 3 != 1]
    assert len(both) == len(chosen) and set(both.sha256s()) == {sha_of(i) for i in chosen}
    assert both.lookup([sha_of(i) for i in range(60)])[1].tolist() == [i in chosen for i in range(60)]
    assert sum(len(batch) for batch in both.iter_batches(4)) == len(chosen) == both.vectors().shape[0]
    assert set(both.aliases()["image_sha256"].to_pylist()) == set(both.sha256s())
    assert len(both.subset(domain="medical")) == sum(i % 3 == 2 for i in chosen)
    with pytest.raises(UnknownImage):
        medical.captions(sha_of(0))
    with pytest.raises(ReleaseError, match=r"'medical', 'set0'"):
        release.subset(domain="medicine")


def test_perspectives_can_be_kept_apart(tmp_path):
    rows = make_rows(0, 9)
    for row in rows:
        row["embeddings"] = {"content": -row["embedding"]}
    write_release(tmp_path / "r", rows, make_aliases(0, 9), **IDENTITY, dim=16, apart=["content"])
    release = open_release(tmp_path / "r", strict=True)
    images = [row["image_sha256"] for row in rows]
    assert np.array_equal(release.lookup(images, "embedding_content")[0], -release.lookup(images)[0])


def test_files_without_captions_are_counted(tmp_path):
    manifest = write_release(tmp_path / "r", make_rows(0, 6), make_aliases(0, 9), **IDENTITY, dim=16)
    assert (manifest["aliases"], manifest["aliases_without_row"]) == (6, 3)
    assert "(3 more have no caption and are left out)" in (tmp_path / "r" / "README.md").read_text()
    stats = manifest["stats"]
    assert stats["captions"]["content"]["finish_reasons"] == {"length": 1, "stop": 5}
    assert stats["captions"]["brightness"]["vocabulary"] == 3 and stats["captions"]["content"]["tokens_max"] == 10
    assert sum(source["images"] for source in stats["sources"]) == 6


def spoiled(**change) -> list[dict]:
    rows = make_rows(0, 3)
    rows[1].update(change)
    return rows


CAPTION = {"perspective": "content", "text": "A", "n_tokens": 1, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (spoiled(image_sha256="ABC"), "'ABC' is not 64"),
        (spoiled(width=0), "width"),
        (spoiled(embedding=np.zeros(16)), "vector of length 0"),
        (spoiled(embedding=np.full(16, np.nan)), "vector of length nan"),
        (spoiled(embedding=np.ones(15)), "dim=16"),
        (spoiled(captions=[CAPTION | {"perspective": "mood"}]), "'mood' has no fingerprint"),
        (spoiled(captions=[CAPTION, CAPTION]), "two captions of one perspective"),
        (spoiled(captions=[CAPTION | {"text": None}]), "no text"),
        (sorted(make_rows(0, 3) + spoiled(height=99), key=str), "two different rows"),
        (make_rows(0, 3)[::-1], "comes after .*; sort the rows"),
        (spoiled(captions=[CAPTION | {"text": "half \ud83d"}]), "half a surrogate"),
    ],
)
def test_bad_rows_are_refused_and_nothing_is_left(tmp_path, rows, message):
    with pytest.raises(ReleaseError, match=message) as caught:
        write_release(tmp_path / "r", rows, [], **IDENTITY, dim=16)
    assert isinstance(caught.value, ReleaseConflict) == ("two different" in message)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ReleaseError, match=r"thesis\.tex"):
        make_release(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_other_versions_mixtures_and_gaps_are_refused(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    manifest = make_release(a, rows_per_group=7, part_bytes=4000)
    make_release(b, rows_per_group=7, part_bytes=4000, teacher_fingerprint="f" * 64)
    part = "features-00001.parquet"
    own = (a / part).read_bytes()
    (a / part).write_bytes((b / part).read_bytes())
    with pytest.raises(DamagedRelease, match=f"{part}.*teacher_fingerprint"):
        open_release(a)
    (a / part).write_bytes(own[:-1])
    with pytest.raises(DamagedRelease, match=f"{part}.*bytes instead of"):
        open_release(a)
    (a / part).unlink()
    with pytest.raises(DamagedRelease, match=f"{part}: missing"):
        open_release(a)
    (a / "manifest.json").write_bytes(dump({**manifest, "format_version": 2}))
    with pytest.raises(ReleaseError, match="format_version 2"):
        open_release(a)
    (b / "manifest.json").write_text(json.dumps(json.loads((b / "manifest.json").read_text()) | {"dim": 8}))
    with pytest.raises(DamagedRelease, match=r"manifest\.json: altered"):
        open_release(b)
    with pytest.raises(ReleaseError, match="no such release"):
        open_release(tmp_path / "nowhere")


def test_half_to_float_is_exact_and_refuses_what_is_no_number():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)].reshape(-1, 64)
    assert np.array_equal(to_float32(finite).view(np.int32), finite.astype(np.float32).view(np.int32))
    for bad in every[~np.isfinite(every)][[0, 1, 1023, 1024, 1025, 2047]]:
        with pytest.raises(DamagedRelease, match="not finite"):
            to_float32(np.where(np.arange(256) == 77, bad, finite.flat[:256]).astype(np.float16).reshape(4, 64))
