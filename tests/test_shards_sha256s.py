"""Hashes of some rows of a release, so that nobody holds all of them to look at a few."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import open_release, write_release

N = 23


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r") / "release"
    shas = sorted(f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}{i:048x}" for i in range(N))
    said = [{"perspective": "p", "text": "a cat", "n_tokens": 3, "finish_reason": "stop"}]
    rows = [{"image_sha256": s, "width": 1, "height": 1, "captions": said, "embedding": [1.0, 0.0]} for s in shas]
    aliases = [(f"{i}.png", "ab"[i % 2], "d", s) for i, s in enumerate(shas)]
    identity = {"fingerprints": {"p": "a" * 64}, "teacher_fingerprint": "c" * 64}
    write_release(folder, rows, aliases, teacher={}, embedder={}, dim=2, **identity)
    return open_release(folder)


@pytest.mark.parametrize("dataset", [None, "b"])
@given(st.data())
def test_hashes_of_some_rows_are_those_of_all_rows(release, dataset, data):
    some = release if dataset is None else release.subset(dataset=dataset)
    every = some.sha256s()
    assert len(every) == len(some) == len({*every}) and (some.lookup_rows(every)[1]).all()
    rows = data.draw(st.lists(st.integers(0, len(some) - 1), min_size=1))
    assert some.sha256s(np.array(rows)) == [every[row] for row in rows]
    low, high = data.draw(st.integers(0, N)), data.draw(st.integers(0, N))
    assert some.sha256s(slice(low, high)) == every[low:high]
