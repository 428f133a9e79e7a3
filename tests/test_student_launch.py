"""`student.training.launch`: quiet, obedient to the user's `accelerate config`, stopped by Ctrl-C in seconds."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import restore_project
import toy_training as toy
from ruamel.yaml import YAML

from student.training import launch

QUIET = [sys.executable, "-m", "student.training.launch"]
PLAIN = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "-m", "this"]


@pytest.fixture
def environment(tmp_path):
    """As a user has it: an `accelerate config` of his own below HF_HOME, or none."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(toy.ROOT), "PATH": path}
    return {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")} | home


def test_the_launcher_prints_no_list_of_its_defaults(room, environment):
    command = [*QUIET, "--params", str(toy.write_params(room)), "--dry-run"]
    plain, quiet = (
        subprocess.run(given, capture_output=True, text=True, env=environment) for given in (PLAIN, command)
    )
    assert "had defaults used instead" in plain.stdout + plain.stderr, "the check can fail"
    assert quiet.returncode == 0 and quiet.stderr == "" and "defaults" not in quiet.stdout and "batch" in quiet.stdout


def test_what_accelerate_config_wrote_counts(room, environment):
    file = Path(environment["HF_HOME"], "accelerate/default_config.yaml")
    file.parent.mkdir(parents=True)
    wanted = {"num_processes": 1, "num_machines": 1, "mixed_precision": "bf16", "dynamo_config": {}}
    file.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", **wanted}))
    program = "import os, sys; print(os.environ['ACCELERATE_MIXED_PRECISION'])"
    (room / "sitecustomize.py").write_text(program)
    environment["PYTHONPATH"] += f"{os.pathsep}{room}"
    environment["ACCELERATE_MIXED_PRECISION"] = "unset"
    arguments = ["--params", str(toy.write_params(room)), "--dry-run"]
    done = subprocess.run([*QUIET, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.split()[:2] == ["unset", "bf16"], done


def test_several_gpus_train_as_with_the_launcher_itself(monkeypatch, caplog):
    import torch
    from accelerate.commands import launch as accelerate

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(accelerate, "default_config_file", "none")
    monkeypatch.setattr(accelerate, "is_bf16_available", lambda *_: True)
    chosen, said = [], []
    for options in ([], launch.defaults(4)):
        with caplog.at_level(logging.WARNING):
            caplog.clear()
            arguments = accelerate.launch_command_parser().parse_args([*options, "train.py"])
            chosen.append(vars(accelerate._validate_launch_command(arguments)[0]))
            said.append(caplog.text)
    assert "More than one GPU" in said[0] and said[1] == ""
    assert chosen[0]["multi_gpu"] and chosen[0]["num_processes"] == 4
    assert {k: v for k, v in chosen[0].items() if k != "nondefault"} == {
        k: v for k, v in chosen[1].items() if k != "nondefault"
    }


@pytest.mark.slow
def test_ctrl_c_in_dvc_repro_train_ends_in_seconds_with_one_line_and_is_not_done(room, environment):
    stage = YAML(typ="safe", pure=True).load((toy.ROOT / "dvc.yaml").read_text("utf-8"))["stages"]["train"]
    outs = [str(room / "student" / name) for name in ("config.json", "model.safetensors", "README.md", "curves")]
    train = {"cmd": stage["cmd"], "params": ["train.lr"], "outs": [os.path.relpath(out, room) for out in outs]}
    (room / "dvc.yaml").write_text(json.dumps({"stages": {"train": train}}))
    toy.write_params(room, max_steps=100_000, save_every=100_000, val_every=0, log_every=1)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=room, env=environment, check=True)
    with open(room / "said.txt", "w") as said:
        process = subprocess.Popen(
            ["dvc", "repro", "train"], cwd=room, env=environment, stdout=said, stderr=said,
            start_new_session=True, preexec_fn=restore_project.heed_ctrl_c,
        )  # fmt: skip
        begun = time.monotonic()
        while not (room / "student/log.jsonl").exists() or len(toy.log_rows(room / "student")) < 3:
            assert process.poll() is None and time.monotonic() - begun < 300, (room / "said.txt").read_text()
            time.sleep(0.1)
        pressed = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        process.wait(timeout=120)
    words = (room / "said.txt").read_text()
    assert time.monotonic() - pressed < 15, words
    assert process.returncode and "Traceback" not in words and "UserWarning" not in words, words
    assert words.count("stopped by signal SIGINT; start again to resume") == 1, words
    assert list((room / "student/checkpoints").glob("*/step-*")) and not (room / "dvc.lock").exists()
