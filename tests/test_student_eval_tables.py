"""Tables of an evaluation, from records made here: no number without its kind, nothing undefined in a mean."""

import csv
import json
from pathlib import Path

import pytest

from student.evaluation.config import EvalConfig, PaperNumbers
from student.evaluation.panels import file_name
from student.evaluation.summary import markdown
from student.evaluation.tables import metrics_json, per_set_csv, results_json, to_json
from student.params import load_section, read_params

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
NATURAL_3T = ["sots_dehazing", "rain100l_deraining", "cbsd68_sigma15", "cbsd68_sigma25", "cbsd68_sigma50"]


def record(dataset, image=0, psnr=33.0, ssim=0.9, **more):
    task = "denoising" if dataset.startswith("cbsd68") else dataset.split("_")[-1]
    scores = {"psnr": psnr, "ssim": ssim, "psnr_input": 20.0, "ssim_input": 0.5}
    return (
        {"row": image, "dataset": dataset, "task": task, "domain": "natural", "image": f"{image}.png"} | scores | more
    )


def natural_3t() -> PaperNumbers:
    """The numbers of natural 3T, of test sets of one image."""
    numbers = load_section(EvalConfig, "eval", read_params(RECIPES / "natural-3t.yaml")).paper
    sets = {name: row.model_copy(update={"images": 1}) for name, row in numbers.sets.items()}
    return numbers.model_copy(update={"sets": sets})


def tables(records, **section):
    """results.json, table.md by its first column (and all of it), datasets.csv."""
    config = EvalConfig(**section)
    results = results_json(records, metrics_json(records, config.variant), config, {"name": "student"})
    table = markdown(json.loads(to_json(results)))
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    columns = {len(line) for line in lines}
    assert len(columns) == 1, "every row has every column"
    return (
        results,
        {line[1] or line[0]: line for line in lines},
        table,
        list(csv.DictReader(per_set_csv(results).split("\n"))),
    )


def test_the_papers_numbers_stand_in_every_table():
    records = [record(name, psnr=30.0 + i) for i, name in enumerate(NATURAL_3T)]
    results, rows, table, lines = tables(records, paper=natural_3t(), variant="promptir")
    assert rows["rain100l_deraining"][-2:] == ["39.62 / 0.9860", "-8.62 / -0.0860"]
    assert rows["**mean over tasks**"][-2:] == ["", ""], "three tasks: not the mean that the paper states"
    mean = rows["**mean over the paper's 5 test sets**"]
    assert mean[4] == "32.00 / 0.9000" and mean[-2:] == ["32.95 / 0.9180", "-0.95 / -0.0180"]
    assert results["overall"]["psnr"] == pytest.approx((30 + 31 + 33) / 3), "what is compared is not what overall is"
    line = next(line for line in lines if line["dataset"] == "rain100l_deraining")
    assert line["paper_variant"] == line["variant"] == "promptir" and line["crop_border"] == "0"
    paper = ("paper_psnr", "paper_ssim", "psnr_difference", "ssim_difference")
    assert [float(line[key]) for key in paper] == [39.62, 0.986, -8.62, -0.086]
    assert results["notes"] == []


def test_a_clean_input_is_no_part_of_the_mean_over_tasks():
    clean = {"psnr_input": float("inf"), "ssim_input": 1.0, "psnr": 50.0}
    records = [record("a_rain"), record("b_haze", 1, psnr=25.0), record("c_clean", 2, **clean)]
    results, rows, table, _ = tables(records)
    assert rows["**mean over tasks**"][2:5] == ["2", "20.00 / 0.5000", "29.00 / 0.9000"]
    assert "without clean" in table and results["tasks"]["clean"]["psnr"] == 50
    results, rows, table, _ = tables(records[2:])
    assert rows["**mean over tasks**"][4].startswith("50.00") and "without" not in table


def test_another_variant_leaves_the_difference_blank_and_says_why():
    results, rows, table, lines = tables([record(name) for name in NATURAL_3T], paper=natural_3t())
    assert rows["rain100l_deraining"][-2:] == ["39.62 / 0.9860", ""]
    assert rows["**mean over the paper's 5 test sets**"][-2:] == ["32.95 / 0.9180", ""]
    assert "published in variant `promptir`, these are `basicsr`; set eval.variant=promptir" in table.splitlines()[-1]
    assert all((line["paper_variant"], line["psnr_difference"]) == ("promptir", "") for line in lines)
    assert not any("paper" in values for values in results["datasets"].values()), "as pipeline.report reads it"


def test_a_missing_test_set_leaves_the_mean_out_and_says_why():
    _, rows, table, _ = tables([record(name) for name in NATURAL_3T[1:]], paper=natural_3t(), variant="promptir")
    assert not any("test sets**" in name for name in rows) and rows["rain100l_deraining"][-1]
    assert "is not compared: no data set is named sots_dehazing" in table.splitlines()[-1]


def test_a_further_metric_is_a_mean_over_the_images_that_have_it():
    angles = [(0.2, 0.1), (0.4, 0.3), (9.0, None), (None, 9.0)]
    records = [record("a_denoising", i, sam_input=before, sam=after) for i, (before, after) in enumerate(angles)]
    records += [record("b_deraining", sam_input=0.5, sam=0.4)]
    results, rows, table, lines = tables(records, extra_metrics=["sam"])
    assert rows["test set"][-1] == "sam" and rows["a_denoising"][-1] == "0.3000 → 0.2000 (2 of 4)"
    assert (
        rows["b_deraining"][-1] == "0.5000 → 0.4000" and rows["**mean over tasks**"][-1] == "0.4000 → 0.3000 (3 of 5)"
    )
    assert [(line["sam_input"], line["sam"], line["sam_n"]) for line in lines] == [
        ("0.3", "0.2", "2"),
        ("0.5", "0.4", "1"),
    ]


def test_the_table_names_the_net_of_a_perceptual_distance():
    _, rows, table, _ = tables([record("a_denoising", lpips=0.1, lpips_input=0.2)], extra_metrics=["lpips"])
    assert rows["test set"][-1] == "lpips (alex)" and "lpips (alex)" in table.splitlines()[0]


def test_a_task_never_leaves_the_folder_of_panels():
    assert file_name("natural_sr_x4") == "natural_sr_x4"
    for hostile in ("../../escape", "/etc/passwd", "a/b", "..", "x\x1b[31m", ""):
        name = file_name(hostile)
        assert name and "/" not in name and not name.startswith(".") and name.isprintable()
