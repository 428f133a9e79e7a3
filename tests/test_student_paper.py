"""Beside the paper: only the same test set, in the same variant, and a mean only over the same test sets."""

from pathlib import Path

import pytest

from student.evaluation.config import EvalConfig
from student.evaluation.tables import beside_paper
from student.params import load_section, read_params

RECIPES = sorted(
    f for f in (Path(__file__).resolve().parents[1] / "recipes").glob("*.yaml") if "paper:" in f.read_text()
)


def recipe(name: str, **changes) -> EvalConfig:
    file = next(file for file in RECIPES if file.stem == name)
    return load_section(EvalConfig, "eval", read_params(file)).model_copy(update=changes)


def scores(config: EvalConfig, psnr=30.0, ssim=0.9) -> dict:
    ours = {"psnr": psnr, "ssim": ssim, "psnr_input": 20.0, "ssim_input": 0.5}
    return {name: ours | {"n": row.images or 3} for name, row in config.paper.sets.items()}


@pytest.mark.parametrize("file", RECIPES, ids=[file.stem for file in RECIPES])
def test_every_number_of_a_recipe_belongs_to_one_of_its_data_sets(file):
    config, names = recipe(file.stem), [d["name"] for d in read_params(file)["index"]["datasets"]]
    assert set(config.paper.sets) == set(names) and config.variant == config.paper.variant
    rows, mean, notes = beside_paper(config, scores(config))
    assert notes == [] and mean["test_sets"] == len(names)
    assert mean["psnr_difference"] == pytest.approx(30 - config.paper.mean[0])
    assert mean["ssim_difference"] == pytest.approx(0.9 - config.paper.mean[1])
    if len(rows) == len(names):  # else the paper states the mean alone
        stated = [row.psnr for row in config.paper.sets.values()]
        assert config.paper.mean[0] == pytest.approx(sum(stated) / len(stated), abs=0.04)


def test_the_mean_needs_every_test_set_whole():
    config = recipe("md-6t")
    sets = scores(config) | {"natural_deraining": {"psnr": 99.0, "n": 9}}
    assert beside_paper(config, sets)[1]["ours"]["psnr"] == pytest.approx(30), "the paper's sets alone"
    few = {name: row | {"n": 3} for name, row in sets.items()}
    rows, mean, notes = beside_paper(config, few)
    assert mean is None and "rain100l_deraining has 3 images, the paper's 100" in notes[0]
    assert "psnr_difference" not in rows["rain100l_deraining"] and "psnr_difference" in rows["ixi_mri_sr_x4"]
    del sets["df2k_sr_x4"]
    rows, mean, notes = beside_paper(config, sets)
    assert mean is None and len(rows) == 5
    assert notes == ["The paper's mean of md-6t is not compared: no data set is named df2k_sr_x4."]


@pytest.mark.parametrize(
    ("variant", "border", "remedy"),
    [
        ("basicsr", 0, "set eval.variant=promptir"),
        ("promptir", 4, "set eval.crop_border=0"),
        ("basicsr", 4, "variant=promptir, and leaves out no border"),
    ],
)
def test_numbers_of_another_kind_are_not_subtracted(variant, border, remedy):
    config = recipe("natural-5t", variant=variant, crop_border=border)
    rows, mean, notes = beside_paper(config, scores(config))
    assert len(rows) == 5 and mean["psnr"] == 31.0
    assert not any(key.endswith("_difference") for row in [*rows.values(), mean] for key in row)
    assert len(notes) == 1 and remedy in notes[0]


def test_without_ssim_there_is_no_difference_of_it():
    config = recipe("md-6t")
    sets = scores(config)
    sets["rain100l_deraining"]["ssim"] = None
    rows, mean, _ = beside_paper(config, sets)
    assert "ssim_difference" not in mean and "ssim_difference" not in rows["rain100l_deraining"]
    assert mean["psnr_difference"] == pytest.approx(30 - 30.77)
