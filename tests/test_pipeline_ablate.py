"""The ablation: its arithmetic, names and controls, and real experiments in a real DVC queue."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_run import write_run

from pipeline import ablate
from pipeline.ablation.config import AblateConfig
from pipeline.ablation.statistics import Interval, differences, markdown, verdict
from pipeline.params import load_all
from student.data.dataset import PairDataset
from student.data.pairs import exchanged, read_pairs, read_release
from student.data.sampler import Draw
from student.machine import use_all_cores
from student.params import ParamsError, Paths, load_section, read_params

REPOSITORY = Path(__file__).parents[1]
RECIPE = REPOSITORY / "recipes" / "ablation.yaml"


def measured(**gains: float) -> dict:
    tasks = {task: {"psnr_gain": gain} for task, gain in gains.items()}
    return {"variant": "basicsr", "tasks": tasks, "overall": {"psnr_gain": float(np.mean(list(gains.values())))}}


def config(**variants: dict) -> AblateConfig:
    return AblateConfig(seeds=[0, 1, 2], variants={"both": {"asks": "the method"}, **variants})


def test_the_interval_is_students():
    interval = Interval.of([1.0, 2.0, 4.5])
    half = 4.302653 * np.std([1.0, 2.0, 4.5], ddof=1) / np.sqrt(3)  # t of 2 degrees of freedom, from a table
    assert interval.mean == 2.5 and (interval.low, interval.high) == pytest.approx((2.5 - half, 2.5 + half), rel=1e-6)
    assert str(Interval.of([1.0])) == "+1.000 [one seed]"


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.floats(-2, 2))
def test_differences_are_paired_so_what_seeds_share_cancels(base, shift):
    both = {seed: measured(a=value, b=value) for seed, value in enumerate(base)}
    other = {seed: measured(a=value + shift, b=value + shift) for seed, value in enumerate(base)}
    difference = differences(other, both)[""]
    assert difference.mean == pytest.approx(shift, abs=1e-9)
    assert difference.high - difference.low == pytest.approx(0, abs=1e-9)


def test_only_the_tasks_and_seeds_of_both_sides_are_compared():
    both = {0: measured(a=1, b=9), 2: measured(a=2, b=9)}
    found = differences({0: measured(a=2), 1: measured(a=9), 2: measured(a=3)}, both)
    assert found.keys() == {"", "a"} and found[""].mean == pytest.approx(1) and found[""].n == 2
    assert differences({1: measured(a=9)}, both) == {}


def test_a_control_that_helps_is_an_alarm():
    assert verdict(Interval(1, 0.5, 1.5, 3), control=True) == "helps: THE CONTROL FAILS"
    assert verdict(Interval(1, -0.5, 2.5, 3), control=True) == "no difference shown"
    assert verdict(Interval(-1, -1.5, -0.5, 3), control=False) == "hurts"


def test_the_table_shows_the_numbers_and_leaves_unfinished_variants_out():
    scores = {"both": {0: measured(a=1), 1: measured(a=2)}, "other": {0: measured(a=0.5), 1: measured(a=1.5)}}
    table = markdown(config(other={"asks": "does it?"}, never={"asks": "?"}), scores, "basicsr")
    assert "| other | +1.000 [" in table and "| both | -0.500 [-0.500, -0.500] | hurts | does it? |" in table
    assert "never" not in table


def test_names_change_with_what_changes_numbers_and_with_nothing_else():
    params = {"train": {"max_steps": 5}, "ablate": {"out": "here"}}
    one = ablate.experiments(config(), params, b"data")
    assert len({e.name for e in one}) == 3
    assert one == ablate.experiments(config(), params | {"ablate": {"out": "there"}, "report": {}}, b"data")
    assert one[0].name != ablate.experiments(config(), params, b"other data")[0].name
    assert one[0].name != ablate.experiments(config(), {"train": {"max_steps": 6}}, b"data")[0].name


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"variants": {"a": {"asks": "?"}}}, "'both', which is no variant"),
        ({"variants": {"both": {"asks": "?", "set": ["train.lr"]}}}, "must be SECTION.KEY=VALUE"),
        ({"variants": {"both": {"asks": "?", "set": ["train.seed=3"]}}}, "set by the ablation itself"),
        ({"seeds": [1, 1]}, "repeats a number"),
    ],
)
def test_mistakes_are_named(section, message):
    with pytest.raises(ParamsError, match=message):
        load_section(AblateConfig, "ablate", {"ablate": section})


def test_every_variant_of_the_recipe_is_valid_and_there_is_a_control():
    found = load_section(AblateConfig, "ablate", read_params(RECIPE))
    for variant in found.variants.values():
        load_all(RECIPE, variant.set)
    assert any(variant.control for variant in found.variants.values()) and len(found.seeds) >= 3


def test_copies_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("store").mkdir()
    Path("store/part").write_bytes(bytes(2000))
    paths = Paths(samples="absent", caption_store="store")
    assert ablate.copies(config(), paths) == ["store"]
    with pytest.raises(ParamsError, match="index.root as an absolute path"):
        ablate.copies(AblateConfig(max_copy_gb=1e-6), paths)


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


STAGES = """
stages:
  embed:
    cmd: mkdir -p artifacts/samples && test -f artifacts/samples/made || echo made by hand > artifacts/samples/made
    outs: [artifacts/samples: {persist: true, cache: false}]
  evaluate:
    cmd: python evaluate.py
    deps: [artifacts/samples]
    params: [train]
    metrics: [artifacts/metrics.json]
"""
EVALUATE = """
import json, os
assert os.environ["PYTHONPATH"].startswith("."), "its own workspace's code must run"
from ruamel.yaml import YAML
train = YAML(typ="safe").load(open("params.yaml"))["train"]
gain = float(open("artifacts/samples/made").read() == "made by hand\\n") + 0.5 * (train["lr"] > 1e-3) + train["seed"]
tasks = {"a": {"psnr_gain": gain}}
json.dump({"variant": "basicsr", "tasks": tasks, "overall": {"psnr_gain": gain}}, open("artifacts/metrics.json", "w"))
"""
PARAMS = """
train: {lr: 1e-3, min_lr: 0, seed: 0}
ablate: {seeds: [0, 1], variants: {both: {asks: base}, fast: {asks: faster?, set: [train.lr=2e-3]}}}
"""


@pytest.mark.slow
def test_real_experiments_run_once_and_their_table_comes_from_dvc(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for file, text in (("dvc.yaml", STAGES), ("evaluate.py", EVALUATE), ("params.yaml", PARAMS)):
        Path(file).write_text(text)
    Path(".gitignore").write_text("/artifacts/\n")
    Path("artifacts").mkdir()
    Path("artifacts/index.parquet").write_bytes(b"an index")
    identity = ("-c", "user.name=n", "-c", "user.email=e@x")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["git", "add", "-A"]):
        subprocess.run(command, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", "start"], check=True)
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "n")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "e@x")
    ablate.main([])
    out = capsys.readouterr().out
    assert "| fast | +2.000 [" in out and "| both | +0.500 [+0.500, +0.500] | helps |" in out
    assert "4 of 4 experiments" in out
    real = ablate.dvc
    monkeypatch.setattr(
        ablate, "dvc", lambda *a, **k: pytest.fail("run again") if a[:2] == ("exp", "run") else real(*a, **k)
    )
    ablate.main([])
    assert "| fast | +2.000 [" in Path("artifacts/ablation/table.md").read_text()
