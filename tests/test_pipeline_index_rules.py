"""How the files of a data set are paired: the templates of their names, and settings that contradict each other."""

import pytest

from pipeline.indexing.config import IndexConfig, PairRule
from student.params import ParamsError, load_section


@pytest.mark.parametrize(
    "split",
    [{"gt": "a"}, {"gt": "a", "lq": "b", "csv": "c"}, {"lq": "b"}, {"csv": "c", "degradation": {"kind": "snow"}},
     {"gt": "a", "lq": "b", "degradation": {"kind": "rain"}},
     {"csv": "c", "lq": "b"}, {"hf": {"path": "p"}}, {"gt": "a", "lq": "b", "pair": {"lq": "{x}"}},
     {"gt": "a", "lq": "b", "pair": {"lq": "{id}{id}"}}],
)  # fmt: skip
def test_contradictions_are_refused(split):
    entry = {"name": "x", "domain": "d", "task": "t", "splits": {"train": split}}
    with pytest.raises(ParamsError, match="index.datasets.0.splits.train"):
        load_section(IndexConfig, "index", {"index": {"root": "data", "datasets": [entry]}})


@pytest.mark.parametrize(
    ("rule", "lq", "gt", "agree"),
    [
        ({}, "7", "7", True),
        ({}, "a/7", "b/7", False),
        ({"lq": "rain-{id}", "gt": "norain-{id}"}, "rain-12", "norain-12", True),
        ({"lq": "rain-{id}", "gt": "norain-{id}"}, "rain-12", "norain-2", False),
        ({"lq": "{id}_{beta}_{light}"}, "0025_0.8_0.1", "0025", True),
        ({"lq": "{id}_{beta}_{light}"}, "a_b_0.8_0.1", "a_b", True),
        ({"lq": "{id}x4"}, "0801x4", "0801", True),
        ({"lq": ["rain-{id}", "{id}"], "gt": ["norain-{id}", "{id}"]}, "rain-12", "norain-12", True),
        ({"lq": ["rain-{id}", "{id}"], "gt": ["norain-{id}", "{id}"]}, "12", "12", True),
        ({"lq": "{scene}/blur/{id}", "gt": "{scene}/sharp/{id}"}, "train/G1/blur/7", "train/G1/sharp/7", True),
        ({"lq": "{scene}/blur/{id}", "gt": "{scene}/sharp/{id}"}, "G1/blur/7", "G2/sharp/7", False),
    ],
)
def test_templates_pair_names(rule, lq, gt, agree):
    rule = PairRule(**rule)
    assert (rule.key("lq", lq) == rule.key("gt", gt)) is agree
    assert rule.key("lq", lq) is not None
