"""How a run starts: its plan, its first weights, what it refuses, the command itself."""

import functools
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import toy_training as toy
from processes import printed

from student.model import Student
from student.network.config import ModelConfig
from student.train import main
from student.training.config import TrainConfig
from student.training.step_cost import rehearse

CPU = torch.device("cpu")


def test_a_dry_run_prints_the_plan_and_touches_nothing(room, capsys):
    file = toy.write_params(room)
    assert main(["--params", str(file), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    data = ("natural_denoising  natural  denoising  7", "16 of 16 training rows")
    for words in (
        *data,
        "6 crops of 16 x 16",
        "steps 0 to 12",
        "align 1",
        "restormer, 0.0",
        "GiB",
        "GB moved",
        "bound by",
    ):
        assert words in plan
    assert not (room / "student").exists()


def test_the_plan_s_memory_is_what_autograd_keeps():
    model = ModelConfig(**(toy.MODEL | {"prompt_dim": 32}))
    two, four = (TrainConfig(batch_size=batch, patch_size=32, mixed_precision="no") for batch in (2, 4))
    small, large = (rehearse(config, model, 1, CPU) for config in (two, four))
    assert small[0] == sum(p.numel() for p in Student(model).parameters())
    assert large[1] == pytest.approx(2 * small[1], rel=0.1)
    checkpointed = model.model_copy(update={"activation_checkpointing": True})
    assert rehearse(four, checkpointed, 1, CPU)[1] < large[1]


def test_a_run_can_start_from_a_student_of_the_same_network(room, capsys):
    out, before = toy.run_here(room, max_steps=3, val_every=0), room / "before"
    out.rename(before)
    file = toy.write_params(room, max_steps=2, val_every=0, lr=1e-12, min_lr=0)
    assert main(["--params", str(file), "--init-from", str(before)]) == 0
    torch.testing.assert_close(toy.weights(out), toy.weights(before))
    file = toy.write_params(room, model={"width": 16}, init_from=str(before))
    assert main(["--params", str(file)]) == 1
    assert "model.width 8 there, 16 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["train.max_stepz=3"], "unknown key train.max_stepz = 3; did you mean 'max_steps'?"),
        (["train.batch_size=5", "train.grad_accumulation=2"], "batch_size 5 must be a multiple"),
        (["train.warmup_steps=12"], "warmup_steps 12 must be below max_steps 12"),
        (["model.prompt_dim=64"], "model.prompt_dim = 64, but the priors in .* have 32 dimensions"),
        (["model.domain_pool=false"], "train.losses.align: these losses need model.domain_pool"),
        (["paths.index=none.parquet"], "none.parquet: no such index; run python -m pipeline.index"),
        (["paths.release=none"], "none: .*python -m pipeline.embed"),
        (["train.dataset_weights={rain: 2}"], "train.dataset_weights names 'rain'; the datasets are medical_denoising"),
        (["train.mixed_precision=fp16"], "train.mixed_precision .*fp16"),
        (["train.trackers=[wandb]"], "train.trackers: wandb is not installed"),
        (["train.init_from=none"], "train.init_from = none: "),
        (["train.init_from=STUDENT"], "is where this run writes"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(room, capsys, overrides, words):
    file = toy.write_params(room)
    overrides = [text.replace("STUDENT", str(room / "student")) for text in overrides]
    assert main(["--params", str(file), *(part for text in overrides for part in ("--set", text))]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("train: ") and "\n" not in error
    assert re.search(words, error), error


def test_help_teaches_without_loading_torch():
    code = "import sys, student.train as t\ntry: t.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    out = printed(toy.ROOT, "-c", code)
    assert "accelerate launch student/train.py --dry-run" in out and out.strip().endswith("False")


LAUNCHERS = [[sys.executable], [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--cpu"]]


def test_accelerate_launch_trains_and_a_failure_is_one_line(room):
    command = [*LAUNCHERS[1], str(toy.ROOT / "student" / "train.py"), "--params", str(toy.write_params(room))]
    run = functools.partial(subprocess.run, capture_output=True, text=True, timeout=600)
    done = run([*command, "--set", "train.max_steps=2", "--set", "train.val_every=0"])
    assert done.returncode == 0 and "train: step 2 of 2" in done.stdout
    done = run([*command, "--set", "paths.index=none.parquet"])
    assert done.returncode and "no such index" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=["python", "accelerate"])
def test_a_checkout_trains_its_own_code(tmp_path, launcher):
    """Not that of the checkout which is installed: worktrees and queued experiments stand beside it."""
    for package in ("student", "shards"):
        shutil.copytree(toy.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("mini", "__pycache__"))
    with open(tmp_path / "student" / "params.py", "a") as params:
        params.write("\nprint('code of this checkout')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [*launcher, str(tmp_path / "student" / "train.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path.parent, env=environment, timeout=120)
    assert done.returncode == 0 and "code of this checkout" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["README.md", "config.json"])
def test_a_folder_of_somebody_else_is_no_students(room, capsys, name):
    (room / "student").mkdir()
    (room / "student" / name).write_text('{"mine": true}')
    assert main(["--params", str(toy.write_params(room))]) == 1
    assert f"{name} would be replaced, and is no student's: change paths.student" in capsys.readouterr().err
    assert [(file.name, file.read_text()) for file in (room / "student").iterdir()] == [(name, '{"mine": true}')]
