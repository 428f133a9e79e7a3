"""Beside the paper: only the same test set, in the same variant, and a mean only over the same test sets."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from student.evaluation.paper_numbers import SETTINGS, compare, published

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def names_of(setting: str) -> list[str]:
    """The recipe's test sets: its data sets, as it names them."""
    recipe = YAML(typ="safe", pure=True).load((RECIPES / f"{setting}.yaml").read_text(encoding="utf-8"))
    return [dataset["name"] for dataset in recipe["index"]["datasets"]]


def scores(names, psnr=30.0, ssim=0.9):
    return {name: {"psnr": psnr, "ssim": ssim, "psnr_input": 20.0, "ssim_input": 0.5, "n": 3} for name in names}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_recipe_finds_every_test_set_once_and_its_variant(setting):
    table = SETTINGS[setting]
    found = [row.label for name in names_of(setting) if (row := published(setting, name))]
    assert sorted(found) == sorted(row.label for row in table.rows)
    recipe = YAML(typ="safe", pure=True).load((RECIPES / f"{setting}.yaml").read_text(encoding="utf-8"))
    assert recipe["eval"]["variant"] == table.variant and recipe["eval"]["setting"] == setting
    comparison = compare(setting, table.variant, 0, scores(names_of(setting)))
    assert comparison.notes == [] and comparison.mean["test_sets"] == len(table.rows)
    assert comparison.mean["psnr_difference"] == pytest.approx(30 - table.psnr)
    assert comparison.mean["ssim_difference"] == pytest.approx(0.9 - table.ssim)
    if table.rows[0].psnr is not None:
        assert table.psnr == pytest.approx(sum(row.psnr for row in table.rows) / len(table.rows), abs=0.04)


@pytest.mark.parametrize(
    ("setting", "dataset"),
    [
        ("md-6t", "reflection_removal"),
        ("md-6t", "terrain_sr"),
        ("md-6t", "gopro_train"),
        ("md-6t", "natural_sr_x4"),
        ("md-6t", "medical_mri_sr_x4"),
        ("md-6t", "rain100h"),
        ("md-6t", "df2k_sr_x2"),
        ("md-6t", "cuhk_cr2"),
        ("md-7t", "gopro_train"),
        ("natural-3t", "robots"),
        ("natural-3t", "cbsd68_sigma150"),
        ("natural-5t", "cbsd68_sigma50"),
        ("natural-5t", "cbsd68"),
        ("natural-5t", "lolly"),
        ("natural-5t", "lol_v2_real"),
        ("natural-5t", "sots_indoor"),
        ("cdd11", "cdd11_clear"),
        (None, "rain100l"),
    ],
)
def test_another_test_set_is_not_taken_for_the_papers(setting, dataset):
    assert published(setting, dataset) is None


@pytest.mark.parametrize(
    ("setting", "dataset", "label"),
    [
        ("md-6t", "DIV2K-Val x4", "DIV2K-Val x4"),
        ("md-6t", "deraining/Rain100L", "Rain100L"),
        ("md-6t", "AAPM-Mayo CT", "AAPM-Mayo CT"),
        ("natural-3t", "CBSD68 σ15", "CBSD68 σ15"),
        ("natural-3t", "denoising_bsd68_50", "CBSD68 σ50"),
        ("natural-5t", "LOL-v1", "LOL"),
        ("cdd11", "CDD-11_low_haze", "CDD-11 low_haze"),
    ],
)
def test_other_spellings_are_found(setting, dataset, label):
    assert published(setting, dataset).label == label


def test_the_mean_needs_every_test_set_exactly_once():
    names = names_of("md-6t")
    five = compare("md-6t", "basicsr", 0, scores([*names[1:], "natural_deraining"]))
    assert five.mean is None and len(five.rows) == 5, "six sets, but one of them is not the paper's"
    assert five.notes == ["The paper's mean of md-6t is not compared: no data set is named as DIV2K-Val x4."]
    twice = compare("md-6t", "basicsr", 0, scores([*names, "rain100l_again"]))
    assert twice.mean is None and "rain100l_again (Rain100L)" in twice.notes[0]
    more = compare("md-6t", "basicsr", 0, scores(names) | scores(["natural_deraining"], psnr=99.0))
    assert more.mean["ours"]["psnr"] == pytest.approx(30) and more.mean["ours"]["n"] == 18, "the paper's sets alone"


@pytest.mark.parametrize(
    ("variant", "border", "remedy"),
    [
        ("basicsr", 0, "set eval.variant=promptir"),
        ("promptir", 4, "set eval.crop_border=0"),
        ("basicsr", 4, "variant=promptir, and leaves out no border"),
    ],
)
def test_numbers_of_another_kind_are_not_subtracted(variant, border, remedy):
    comparison = compare("natural-5t", variant, border, scores(names_of("natural-5t")))
    assert len(comparison.rows) == 5 and comparison.mean["psnr"] == 31.0
    assert not any(key.endswith("_difference") for row in [*comparison.rows.values(), comparison.mean] for key in row)
    assert len(comparison.notes) == 1 and remedy in comparison.notes[0]


def test_without_ssim_there_is_no_difference_of_it():
    sets = scores(names_of("md-6t"))
    sets["rain100l_deraining"]["ssim"] = None
    comparison = compare("md-6t", "basicsr", 0, sets)
    assert "ssim_difference" not in comparison.mean and "ssim_difference" not in comparison.rows["rain100l_deraining"]
    assert comparison.mean["psnr_difference"] == pytest.approx(30 - 30.77)
