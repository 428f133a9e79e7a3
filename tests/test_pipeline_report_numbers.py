"""The arithmetic behind the report's sentences, and its bounds for very large releases."""

import hashlib
import math
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reporting import priors as report_priors
from pipeline.reporting.blocks import Table, listed, pretty
from pipeline.reporting.config import ReportConfig
from pipeline.reporting.inputs import choose
from pipeline.reporting.prompts import _depth, _information
from pipeline.reporting.words import count, log_odds

GROUPS = st.dictionaries(
    st.sampled_from("abcdef"), st.sets(st.integers(0, 60).map(lambda n: f"{n:04}")), min_size=1
).map(lambda groups: {name: sorted(members) for name, members in groups.items()})


@given(GROUPS, st.integers(1, 80))
def test_the_sample_is_bounded_sorted_and_shared_out(groups, limit):
    chosen = choose(groups, limit)
    everyone = set().union(*map(set, groups.values()))
    assert len(chosen) <= limit and chosen == sorted(set(chosen)) and set(chosen) <= everyone
    if sum(map(len, groups.values())) <= limit:
        assert set(chosen) == everyone, "a small release is read whole"
    share = limit // len(groups)
    for members in groups.values():
        assert set(members[:share]) <= set(chosen), "a group lost its share to another"


def test_the_sample_does_not_depend_on_the_order_of_the_groups():
    groups = {"a": ["1", "5", "9"], "b": ["2", "3"], "c": ["4"]}
    assert choose(groups, 4) == choose(dict(reversed(groups.items())), 4)


def test_log_odds_equals_the_formula_and_prefers_telling_words():
    counts = {"x": Counter(the=50, cat=10, dog=1), "y": Counter(the=50, dog=11)}
    telling = log_odds(counts)
    a, b = 10 + 0.1, 0 + 0.1
    n_x, n_y, prior = 61, 61, 1.22
    delta = math.log(a / (n_x + prior - a)) - math.log(b / (n_y + prior - b))
    assert dict(telling["x"])["cat"] == pytest.approx(delta / math.sqrt(1 / a + 1 / b))
    assert telling["x"][0][0] == "cat" and telling["y"][0][0] == "dog"
    assert "the" not in dict(telling["x"]), "a word that both use alike tells nothing"


def test_words_are_counted_without_numbers_and_case():
    assert count(["The cat's 3 cats, naïve-looking!", "the CAT's"]) == Counter(
        {"the": 2, "cat's": 2, "cats": 1, "naïve-looking": 1}
    )


def test_information_is_zero_for_equal_rows_and_all_bits_for_disjoint_ones():
    assert _information(np.tile([0.5, 0.3, 0.2], (4, 1))) == pytest.approx(0, abs=1e-12)
    assert _information(np.eye(4)) == pytest.approx(2)


def test_gates_come_in_the_order_of_the_forward_pass():
    names = [
        f"backbone.{n}.fusion.gate" for n in ("refinement.0", "decoder.0.1", "decoder.0.0", "decoder.2.0", "latent.0")
    ]
    assert sorted(names, key=_depth) == [names[i] for i in (4, 3, 2, 1, 0)]


def test_names_and_lists_read_like_prose():
    assert pretty("remote_sensing_sr_x4") == "remote sensing SR ×4"
    assert [listed([]), listed("a"), listed("ab"), listed("abc")] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    "cell", ["3", "-1.04", "+3.00", "33.80 / 0.9278 (AAPM CT)", "29.71 / –", "+0.10 [-1.00, +1.20]", "–", "1,024"]
)
def test_numbers_stand_right(cell):
    assert not Table("", "", ["what", "value"], [["x", cell]]).is_text(1)


@pytest.mark.parametrize(
    "cell", ["00346ed7d960f656", "2026-11-23 07:28 UTC", "3.11.7 on Linux", "167 images, 9 captions/s", "helps"]
)
def test_words_hashes_and_dates_stand_left(cell):
    assert Table("", "", ["what", "value"], [["x", cell]]).is_text(1)


def test_equal_priors_share_a_point_of_the_map():
    vectors = np.repeat(np.eye(8, dtype=np.float32), 5, axis=0)
    labels = np.array(["a", "b"] * 20)
    sample = SimpleNamespace(domains=labels, datasets=labels, rule="All.", sha256s=list("x" * 40))
    inputs = SimpleNamespace(vectors=vectors, sample=sample, config=ReportConfig())
    by_domain, _ = report_priors.maps(inputs)
    assert "8 of 40 priors differ; the more images share a point, the larger it is. All." in by_domain.takeaway


@pytest.mark.slow
def test_a_hundred_thousand_priors_take_under_a_minute_and_bounded_memory(tmp_path):
    """The whole stage as a process of its own: processor seconds, which other work hardly changes, and the peak
    memory that the kernel saw."""
    from toy_run import write_run, write_toy_release

    params = write_run(tmp_path)
    params.write_text("{}")
    rng = np.random.default_rng(0)
    shas = {hashlib.sha256(b"%d" % n).hexdigest(): ("medical", "natural")[n % 2] for n in range(100_000)}
    aliases = [(f"{n}.png", f"{d}_{n % 3}", d, sha) for n, (sha, d) in enumerate(shas.items())]
    write_toy_release(tmp_path / "artifacts/caption_shards", shas, aliases, rng)
    probe = (
        "import resource, time; from pipeline.report import main; main([]); "
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "artifacts/report/index.html").read_text(encoding="utf-8")
    assert "of 100000 images: the same number from each data set" in html
    _, mebibytes, seconds = done.stdout.splitlines()[-1].split()
    assert float(seconds) < 60 and int(mebibytes) < 1500, done.stdout
