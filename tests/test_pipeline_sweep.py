"""A parameter sweep as the docs tell it, in a real DVC repository with the real stages, at toy size."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

REPOSITORY = Path(__file__).parents[1]
SMALL = {
    "samples": {"seed": 0, "train_pairs": 2, "val_pairs": 1},
    "model": {"width": 8, "encoder_blocks": [1, 1], "decoder_blocks": [1, 1], "heads": [1, 1, 2], "prompt_dim": None},
    "train": {"batch_size": 2, "patch_size": 16, "num_workers": 0, "save_every": 99, "val_every": 0, "log_every": 1,
              "lr": 1e-3, "warmup_steps": 0, "init_from": None, "trackers": []},
}  # fmt: skip


def project(folder: Path) -> None:
    """This repository's code and stages, with two data sets of two images, committed to a Git of its own."""
    for room in ("pipeline", "shards", "student", "teacher"):
        shutil.copytree(REPOSITORY / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / file, folder / file)
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["index"]["datasets"] = [d for d in params["index"]["datasets"] if d["name"].endswith("ing")]
    for section, values in SMALL.items():
        params[section] |= values
    params["model"] |= {"latent_blocks": 1, "refinement_blocks": 0}
    params["train"] |= {"dataset_weights": {}, "max_steps": 2}
    params["eval"]["panels"] = False
    with open(folder / "params.yaml", "w", encoding="utf-8") as file:
        yaml.dump(params, file)


@pytest.fixture
def run(tmp_path):
    """`run("command ...", folder)` by the user x@y, offline: what it printed."""
    identity = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | identity | {"PATH": path, "PYTHONPATH": ".", "HF_HUB_OFFLINE": "1"}

    def run(command: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(command.split(), cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr * command.startswith("dvc repro")

    return run


@pytest.mark.slow
def test_a_sweep_trains_every_setting_and_captions_nothing_anew(tmp_path, run):
    project(tmp_path)
    for command in ("git init -q", "dvc init -q", "dvc repro embed", "git add -A", "git commit -qm start"):
        run(command)
    copied = "-C artifacts/samples -C artifacts/caption_store"
    run(f"dvc exp run --queue -S train.lr=5e-4,1e-3 -S train.max_steps=2,3 {copied} evaluate")
    run("dvc exp run --run-all")
    _, start = json.loads(run("dvc exp show --json --no-pager"))
    experiments = [revision for group in start["experiments"] for revision in group["revs"]]
    params = [entry["data"]["params"]["params.yaml"]["data"]["train"] for entry in experiments]
    assert {(row["lr"], row["max_steps"]) for row in params} == {(5e-4, 2), (5e-4, 3), (1e-3, 2), (1e-3, 3)}
    for entry in experiments:
        assert entry["data"]["metrics"]["artifacts/metrics.json"]["data"]["overall"]["psnr"] > 0
    logs = "".join(file.read_text() for file in tmp_path.glob(".dvc/tmp/exps/run/*/*.out"))
    assert "Running stage 'train'" in logs and "Running stage 'caption'" not in logs


@pytest.mark.slow
def test_a_clone_and_an_experiment_caption_nothing_and_apply_brings_tables_and_panels(tmp_path, run):
    """The captions come out of the release that DVC brings; so do the tables and pictures of the applied experiment."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    project(one)
    params = (one / "params.yaml").read_text().replace("panels: false", "panels: true")
    (one / "params.yaml").write_text(params)
    for command in ("git init -q", "dvc init -q", f"dvc remote add -q -d store {tmp_path}/store"):
        run(command, one)
    assert re.search(r"([1-9]\d*) new of \1 images", run("dvc repro", one))
    for command in ("git add -A", "git commit -qm start", "dvc push -q"):
        run(command, one)

    said = run("dvc exp run --temp -n longer -S train.max_steps=4 -C artifacts/samples", one)
    assert "Running stage 'train'" in said and "0 new of" in said
    before = shown(one)
    run("dvc exp apply longer", one)
    after = shown(one)
    assert all(before[file] != after[file] for file in before), (
        "scores, table, pictures and student are the applied run's"
    )
    (scores,) = json.loads(run("dvc metrics show --json", one)).values()
    overall = json.loads(after["artifacts/evaluation/results.json"])["overall"]
    assert overall["psnr"] == scores["data"]["artifacts/metrics.json"]["data"]["overall"]["psnr"]
    assert "Running stage 'evaluate'" not in run("dvc repro evaluate", one)
    assert shown(one) == after

    run(f"git clone -q {one} {two}")
    run("dvc pull -q", two)
    shutil.rmtree(two / "artifacts/caption_store", ignore_errors=True)
    said = run("dvc repro embed", two)
    assert "take their captions from artifacts/caption_shards" in said and "0 new of" in said
    assert (two / "artifacts/evaluation/table.md").read_text() == before["artifacts/evaluation/table.md"].decode()


def shown(folder: Path) -> dict[str, bytes]:
    """What people look at, and the weights that it is of."""
    names = ["evaluation/results.json", "evaluation/table.md", "evaluation/panels/overview.png"]
    return {f"artifacts/{n}": (folder / "artifacts" / n).read_bytes() for n in [*names, "student/model.safetensors"]}
