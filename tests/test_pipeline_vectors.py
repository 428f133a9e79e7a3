"""From the captions of an image to its vector: how they are pooled, what takes their place, and where it is kept."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.embedding.cache import EmbeddingCache
from pipeline.embedding.rows import CaptionBlock, pool
from pipeline.embedding.run import embed_images
from pipeline.indexing.table import SCHEMA, Index, aliases_of
from pipeline.indexing.writer import write_index


def test_pool_weighs_perspectives_equally_whatever_their_length():
    vectors = {"a": np.array([[3.0, 0.0]], np.float32), "b": np.array([[0.0, 0.5]], np.float32)}
    np.testing.assert_allclose(pool(vectors, "mean", ["a", "b"]), [[[0.5**0.5] * 2, [1, 0], [0, 1]]], atol=1e-3)
    np.testing.assert_allclose(pool(vectors, "concat", []), [[[0.5**0.5, 0, 0, 0.5**0.5]]], atol=1e-3)


@pytest.mark.parametrize(("pooling", "apart"), [("mean", ["a", "c"]), ("concat", []), ("mean", [])])
def test_pooling_many_gives_the_bits_of_pooling_one(pooling, apart):
    """As numpy.linalg.norm and numpy.mean have them for one image, which releases were made with."""
    rng = np.random.default_rng(0)
    vectors = {name: rng.standard_normal((300, 384), dtype=np.float32) for name in "cab"}
    many = pool(vectors, pooling, apart)
    for image in range(300):
        unit = {name: vectors[name][image].astype(np.float64) for name in "abc"}
        unit = {name: vector / np.linalg.norm(vector) for name, vector in unit.items()}
        of_names = list(unit.values())
        pooled = np.concatenate(of_names) if pooling == "concat" else np.mean(of_names, axis=0)
        one = np.stack([pooled / np.linalg.norm(pooled), *(unit[name] for name in apart)]).astype(np.float16)
        assert (many[image] == one).all()


def test_cache_round_trip_by_ranges(tmp_path):
    cache = EmbeddingCache(str(tmp_path), "f", 2, 3)
    images, digests = [f"{n << 228:064x}" for n in range(10)], [f"digest {n}" for n in range(10)]
    cut, vectors = [["content"] * (n % 2) for n in range(10)], np.arange(60, dtype=np.float16).reshape(10, 2, 3)
    for some in (slice(0, 6), slice(6, 10)):
        cache.append(images[some], digests[some], cut[some], vectors[some])
    again = EmbeddingCache(str(tmp_path), "f", 2, 3)
    for low, high in ((0, 10), (2, 4), (5, 8), (9, 10)):
        held = again.find(pa.array(images[low:high]), digests[low:high])
        assert held.found.all() and (held.vectors == vectors[low:high]).all()
        assert held.truncated == {n - low: ["content"] for n in range(low, high) if n % 2}
    other = again.find(pa.array(images), [*digests[:9], "another text"], vectors=False)
    assert other.found.tolist() == [True] * 9 + [False] and other.vectors is None
    again.append(images[9:], ["another text"], [[]], vectors[:1])
    assert (again.find(pa.array(images), [*digests[:9], "another text"]).vectors[9] == vectors[0]).all()
    part = next((tmp_path / "f").glob(f"part-{images[0][:8]}-*"))
    part.rename(part.with_name(f"part-{part.stem[-32:]}.parquet"))  # as version 0.1 named it
    assert EmbeddingCache(str(tmp_path), "f", 2, 3).find(pa.array(images), digests).found.all()


class WordCounts:
    """An embedder that can be checked by hand: counts of three words; texts of more than six words are cut."""

    def encode(self, texts):
        vectors = np.array([[text.count(word) for word in ("cat", "dark", "sky")] for text in texts], np.float32)
        lengths = np.array([len(text.split()) for text in texts])
        return vectors, lengths, lengths > 6


def test_joined_captions_are_embedded_as_one_text():
    texts = {"brightness": pa.array(["dark"]), "content": pa.array(["a cat, a cat"])}
    (cut,), joined = embed_images(texts, WordCounts(), "joined", [])
    np.testing.assert_allclose(joined[0, 0], np.array([2, 1, 0]) / np.sqrt(5), atol=1e-3)
    _, mean = embed_images(texts, WordCounts(), "mean", [])
    np.testing.assert_allclose(mean[0, 0], np.array([1, 1, 0]) / np.sqrt(2), atol=1e-3)
    assert cut == []
    texts["content"] = pa.array(["a cat, a cat and a sky"])
    assert embed_images(texts, WordCounts(), "joined", [])[0] == [["brightness", "content"]]


def test_labels_take_the_place_of_the_captions_and_belong_to_the_vectors_identity(tmp_path):
    row = dict.fromkeys(SCHEMA.names, "x") | {"status": "ok", "width": 9, "height": 9}
    given = (("0", "dark_sky"), ("0", "cat"), ("1", "cat"))
    rows = [row | {"gt_sha256": sha256, "domain": domain} for sha256, domain in given]
    write_index(rows, tmp_path / "index.parquet", lambda: True)
    (block,) = Index(tmp_path / "index.parquet").blocks()
    assert dict(zip(block.images.to_pylist(), block.labels(), strict=True)) == {"0": "cat, dark sky", "1": "cat"}

    def captions(label):
        said = pa.table({"caption": ["sky sky sky"]}), pa.table({"caption": ["sky"]})
        held = dict(zip(("brightness", "content"), said, strict=True))
        return CaptionBlock("", "g", pa.table({"image_sha256": ["0"]}), held, np.ones((1, 2), bool), label and [label])

    _, vectors = embed_images(captions("cat, dark sky").texts, WordCounts(), "label", [])
    np.testing.assert_allclose(vectors[0, 0], np.array([1, 1, 1]) / np.sqrt(3), atol=1e-3)
    digests = {captions(label).digests[0] for label in (None, "cat", "dark sky")}
    assert len(digests) == 3, "a cached vector of another text would be taken for this one"


def test_a_release_tells_no_folder_of_this_machine(tmp_path, monkeypatch):
    """Paths are relative to index.root, however it is written, and two machines give the same."""
    monkeypatch.chdir(tmp_path)
    told = []
    for root in ("data", f"{tmp_path}/data", "./x/../data/", f"{tmp_path}/other/../data"):
        places = ["a//b.png", "../patients/Doe^John/c.png", "a/../d.png", "e.png"]
        paths = [*(f"{root}/{place}" for place in places), "/mnt/Doe^Jane/f.png", "extracted/set/g.png"]
        columns = {name: ["x"] * len(paths) for name in ("dataset", "domain", "gt_sha256")}
        aliases = aliases_of(pa.table({"gt_path": paths, **columns}), root, "extracted")
        told.append(sorted(aliases["path"].to_pylist()))
    assert told == [["a/b.png", "c.png", "d.png", "e.png", "f.png", "set/g.png"]] * 4
