"""What the ablation varies besides plain switches: shuffled priors, other texts; and its share of the cores."""

import os

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_run import write_run

from pipeline.embedding.rows import CaptionBlock
from pipeline.embedding.run import embed_images
from pipeline.indexing.table import SCHEMA, Index
from pipeline.indexing.writer import write_index
from student.data.dataset import PairDataset
from student.data.pairs import exchanged, read_pairs, read_release
from student.data.sampler import Draw
from student.machine import use_all_cores


@given(st.sets(st.text("0123456789abcdef", min_size=4, max_size=4), min_size=2), st.integers(0, 5))
def test_exchanged_is_a_permutation_without_fixed_points(names, seed):
    partner = exchanged([*names, *names], seed)
    assert set(partner) == set(partner.values()) == names
    assert all(one != other for one, other in partner.items())
    assert partner == exchanged(sorted(names), seed), "it must not depend on the order of the rows"


def test_shuffled_priors_are_other_images_priors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path)
    pairs, release = read_pairs("artifacts/index.parquet", "train"), read_release("artifacts/caption_shards")
    plain, shuffled = (PairDataset(pairs, release, 16, 0, shuffle_priors=flag) for flag in (False, True))
    draws = [Draw(row, 0) for row in range(len(pairs))]
    one, other = plain.__getitems__(draws), shuffled.__getitems__(draws)
    assert other["has_prior"].all() and (one["lq"] == other["lq"]).all(), "only the priors may differ"
    assert not (one["prior"] == other["prior"]).all(1).any(), "an image kept its own prior"
    order = [np.lexsort(batch["prior"].numpy().T) for batch in (one, other)]
    assert np.array_equal(one["prior"].numpy()[order[0]], other["prior"].numpy()[order[1]]), "the set must stay"


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


def test_experiments_side_by_side_keep_their_share_of_the_cores(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setenv("MKL_NUM_THREADS", "3")
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as `accelerate launch` leaves it
        use_all_cores()
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("MKL_NUM_THREADS")
        use_all_cores()
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)
