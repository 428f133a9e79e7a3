"""Published weights give the published outputs, and come back unchanged.

tests/reference holds inputs, outputs and weights recorded from the published definitions at toy sizes.
"""

import hashlib
import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from student.convert import ConvertError, import_published, load_published, main
from student.model import Student

REFERENCE = Path(__file__).parent / "reference"
TOP_K = {"restormer_dual": (2, 3), "restormer_task_only": (2, None), "nafnet_dual": (2, 3)}


@pytest.fixture(params=TOP_K)
def name(request):
    return request.param


def imported(name: str) -> Student:
    return import_published(REFERENCE / f"{name}.pth", *TOP_K[name])[0]


def recorded(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    arrays = np.load(REFERENCE / f"{name}.npz")
    count = len(arrays.files) // 2
    return [tuple(torch.from_numpy(arrays[f"{kind}_{i}"]) for kind in ("input", "output")) for i in range(count)]


@torch.no_grad()
def test_outputs_equal_the_recorded_ones(name):
    student = imported(name)
    for lq, expected in recorded(name):
        assert (expected - lq).abs().max() > 0.1  # the network does something
        torch.testing.assert_close(student(lq), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_another_top_k_gives_another_output(name):
    lq, expected = recorded(name)[0]
    other = import_published(REFERENCE / f"{name}.pth", 1, TOP_K[name][1] and 1)[0]
    assert (other(lq) - expected).abs().max() > 1e-5


def test_configuration_is_the_recorded_one(name):
    config = imported(name).config
    arguments = json.loads((REFERENCE / f"{name}.json").read_text())["kwargs"]
    assert list(config.encoder_blocks) == arguments["enc_blk_nums"]
    assert config.latent_blocks == arguments["middle_blk_num"]
    assert config.width == arguments.get("dim", arguments.get("width"))
    assert config.task_pool_size == arguments["degradation_pool_size"]
    assert config.domain_pool == ("domain_pool_size" in arguments)
    assert (config.prompt_len, config.prompt_dim) == (2, 32)


def test_round_trip_changes_only_dead_tensors(name, tmp_path):
    theirs = load_published(REFERENCE / f"{name}.pth")
    imported(name).save_pretrained(tmp_path / "ours")
    main([str(tmp_path / "ours"), str(tmp_path / "back.pth"), "--to-published"])
    back = load_published(tmp_path / "back.pth")
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in theirs.items()}
    for key, tensor in theirs.items():
        if "cross_attn_q" in key or "cross_attn_k" in key:
            assert not back[key].any()
        elif ".in_proj_" in key:
            assert torch.equal(back[key].chunk(3)[2], tensor.chunk(3)[2])
        else:
            assert torch.equal(back[key], tensor), key


@torch.no_grad()
def test_dead_tensors_are_dead():
    """The queries and keys that the import leaves out cannot change a plain formulation of the published model."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from plain_student import PlainStudent

    student = imported("restormer_dual")
    lq, expected = recorded("restormer_dual")[0]
    for scale in (0.0, 3.0):
        plain = PlainStudent(student.config).load(student, scale)
        torch.testing.assert_close(plain(lq), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wrapping", ["params_ema", "lightning", "module", "compiled", "bare"])
def test_every_published_wrapping_is_read(wrapping, tmp_path):
    weights = load_published(REFERENCE / "nafnet_dual.pth")
    content = {
        "params_ema": {"params": {"wrong": torch.zeros(1)}, "params_ema": weights},
        "lightning": {"state_dict": {f"net.{n}": t for n, t in weights.items()}, "epoch": 3},
        "module": {"params": {f"module.{n}": t for n, t in weights.items()}},
        "compiled": {"state_dict": {f"net.module._orig_mod.{n}": t for n, t in weights.items()}},
        "bare": weights,
    }[wrapping]
    torch.save(content, tmp_path / "file.pth")
    read = load_published(tmp_path / "file.pth")
    assert read.keys() == weights.keys() and all(torch.equal(read[n], weights[n]) for n in weights)


class Code:
    def __reduce__(self):
        return print, ("code in the checkpoint ran",)


@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        "extra",
        "shape",
        "truncated",
        "code",
        "foreign",
        "absent",
        "top_k",
        "no top_k",
        "transposed",
        "nan",
        "numbered",
        "empty",
        "pointer",
        "page",
    ],
)
def test_anything_unexpected_is_refused_by_name(damage, tmp_path, capfd):
    weights, top_k, file = load_published(REFERENCE / "restormer_dual.pth"), 2, tmp_path / "file.pth"
    names = {
        "missing": "latent_blocks.0.attn.qkv.weight",
        "extra": "surprise.weight",
        "shape": "output.weight",
        "foreign": "features.0.weight",
        "code": "Python objects",
        "truncated": "no readable PyTorch checkpoint",
        "absent": "no such file",
        "top_k": "--task-top-k",
        "no top_k": "--task-top-k",
        "transposed": "latent_blocks.0.ffn.project_in.weight",
        "nan": "output.weight",
        "numbered": "latent_blocks.*: numbered up to 1000000000",
        "empty": "empty file",
        "pointer": "git lfs pull",
        "page": "a web page",
    }
    if damage == "missing":
        del weights[names[damage]]
    if damage in ("extra", "shape"):
        weights[names[damage]] = torch.zeros(5)
    if damage == "foreign":
        weights = {names[damage]: torch.zeros(1)}
    if damage == "transposed":
        weights[names[damage]] = weights[names[damage]].transpose(0, 1).contiguous()
    if damage == "nan":
        weights[names[damage]][0] = torch.nan
    if damage == "numbered":
        weights["latent_blocks.1000000000.norm1.body.weight"] = torch.zeros(1)
    torch.save({"params": weights}, file)
    if damage == "no top_k":
        top_k = 0
    texts = {
        "empty": b"",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "page": b"<!DOCTYPE html>",
    }
    if damage in texts:
        file.write_bytes(texts[damage])
    if damage == "top_k":
        top_k = 6
    if damage == "code":
        file.write_bytes(pickle.dumps({"params": Code()}))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    if damage == "absent":
        file.unlink()
    with pytest.raises(ConvertError, match=re.escape(names[damage])) as error:
        import_published(file, top_k, 3)
    assert str(file) in str(error.value)
    assert "ran" not in capfd.readouterr().out


def test_command_writes_a_loadable_student_and_never_overwrites(tmp_path, capsys):
    file, target = REFERENCE / "restormer_dual.pth", tmp_path / "out"
    main([str(file), str(target), "--task-top-k", "2", "--domain-top-k", "3"])
    printed = capsys.readouterr().out
    assert "cross_attn_q" in printed and "0.26 M parameters" in printed
    lq, expected = recorded("restormer_dual")[0]
    with torch.no_grad():
        torch.testing.assert_close(Student.from_pretrained(str(target))(lq), expected, atol=1e-5, rtol=0)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (target / "README.md").read_text()
    with pytest.raises(SystemExit, match="exists already"):
        main([str(file), str(target)])
