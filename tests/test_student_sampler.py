"""Balanced batches: shares, passes, processes and resuming."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from student.data.sampler import BalancedBatches

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def rows_of(counts: list[int]) -> dict[str, np.ndarray]:
    ends = np.cumsum(counts)
    return {f"set{i}": np.arange(end - count, end) for i, (count, end) in enumerate(zip(counts, ends, strict=True))}


def batches(counts, **options):
    return list(BalancedBatches(rows_of(counts), **({"batch_size": 6, "seed": 1, "last": 20} | options)))


@given(sizes, st.integers(1, 13))
@settings(max_examples=60)
def test_each_dataset_gives_k_and_the_remainder_goes_one_each_to_r_of_them(counts, batch_size):
    owner = {row: name for name, rows in rows_of(counts).items() for row in rows}
    k, r = divmod(batch_size, len(counts))
    for batch in batches(counts, batch_size=batch_size):
        given = Counter(owner[draw.row] for draw in batch)
        assert len(batch) == batch_size
        assert all(given[name] in (k, k + 1) for name in owner.values())
        assert sum(given[name] == k + 1 for name in set(owner.values())) == r


@given(sizes, st.integers(0, 5))
@settings(max_examples=60)
def test_every_sample_comes_once_a_pass_and_exhausted_datasets_restart(counts, seed):
    seen = Counter(draw for batch in batches(counts, seed=seed) for draw in batch)
    assert set(seen.values()) == {1}  # (row, epoch) never repeats
    for rows in rows_of(counts).values():
        epochs = Counter(draw.epoch for draw in seen if draw.row in rows)
        assert all(epochs[epoch] == len(rows) for epoch in range(max(epochs)))  # all passes but the last are complete


@given(sizes, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]))
@settings(max_examples=40)
def test_the_processes_shares_make_up_the_batches_of_one_process(counts, parts, micro):
    alone = batches(counts, batch_size=12)
    options = {"batch_size": 12, "parts": parts, "micro_batches": micro}
    shares = [batches(counts, part=part, **options) for part in range(parts)]
    for step, batch in enumerate(alone):
        lists = [share[step * micro + m] for share in shares for m in range(micro)]
        assert {len(draws) for draws in lists} == {12 // parts // micro}
        assert sorted(draw for draws in lists for draw in draws) == sorted(batch)


@given(sizes, st.integers(0, 19))
@settings(max_examples=40)
def test_a_start_in_the_middle_gives_what_an_uninterrupted_run_gives(counts, first):
    weights = {"set0": 2.5}
    assert batches(counts, first=first, weights=weights) == batches(counts, weights=weights)[first:]


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=6), st.integers(1, 16))
@settings(max_examples=60)
def test_shares_follow_the_weights_and_never_stray_far(weights, batch_size):
    rows = rows_of([50] * len(weights))
    sampler = BalancedBatches(rows, batch_size, 0, dict(zip(rows, weights, strict=True)))
    given = np.cumsum(sampler.composition(np.arange(2000)), axis=0)
    assert (np.diff(given.sum(1)) == batch_size).all()
    wanted = np.outer(np.arange(1, 2001) * batch_size, np.array(weights) / sum(weights))
    assert np.abs(given - wanted).max() < 6
    assert (sampler.drawn_before(2000) == given[-1]).all()


def test_other_seeds_and_other_passes_have_another_order():
    def order(seed, epoch):
        draws = [draw for batch in batches([30], seed=seed) for draw in batch]
        return [draw.row for draw in draws if draw.epoch == epoch]

    assert order(1, 0) == order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)


def test_a_new_dataset_leaves_the_order_of_the_others_and_weight_zero_leaves_it_out():
    before, after, without = (
        [draw.row for batch in batches(counts, **options) for draw in batch]
        for counts, options in (([10], {}), ([10, 5], {}), ([10, 5], {"weights": {"set1": 0.0}}))
    )
    assert [row for row in after if row < 10][:10] == before[:10]
    assert without == before


@pytest.mark.parametrize(
    "options, words",
    [
        ({"weights": {"sets": 1.0}}, "names 'sets'; the datasets are set0, set1"),
        ({"weights": {"set0": 0, "set1": 0}}, "no dataset to train on"),
        ({"parts": 4}, "batch_size 6 must be a multiple of processes x grad_accumulation = 4 x 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(options, words):
    with pytest.raises(ValueError, match=words):
        batches([3, 4], **options)
