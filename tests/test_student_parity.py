"""Published weights give the published outputs, and come back unchanged.

tests/reference holds inputs, outputs and weights recorded from the published definitions at toy sizes.
"""

import hashlib
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


QKV, OUT, UP = "latent_blocks.0.attn.qkv.weight", "output.weight", "latent_blocks.0.ffn.project_in.weight"


@pytest.mark.parametrize(
    "name, change, said",
    [
        (QKV, lambda _: None, QKV),
        ("surprise.weight", lambda _: torch.zeros(5), "surprise.weight"),
        (OUT, lambda _: torch.zeros(5), OUT),
        ("refinement.0.prompt_weight", lambda _: torch.zeros(2), "refinement.0.feature_weight"),
        ("patch_embed.proj.weight", lambda _: None, "neither patch_embed.proj.weight"),
        (UP, lambda tensor: tensor.transpose(0, 1).contiguous(), UP),
        (OUT, lambda tensor: tensor * torch.nan, OUT),
        ("domain_prompt_pool.prompt_values", lambda tensor: tensor[0], "expected 3"),
        ("latent_blocks.1000000000.x", lambda _: torch.zeros(1), "latent_blocks.*: numbered up to 1000000000"),
    ],
    ids=["missing", "extra", "shape", "gate", "foreign", "transposed", "nan", "flat", "numbered"],
)
def test_other_weights_are_refused_by_name(name, change, said, tmp_path):
    weights, file = load_published(REFERENCE / "restormer_dual.pth"), tmp_path / "file.pth"
    weights[name] = change(weights.get(name))
    torch.save({"params": {name: tensor for name, tensor in weights.items() if tensor is not None}}, file)
    with pytest.raises(ConvertError, match=re.escape(said)) as error:
        import_published(file, 2, 3)
    assert str(file) in str(error.value)


class Code:
    def __reduce__(self):
        return print, ("code in the checkpoint ran",)


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "no such file"),
        (b"", "empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html>", "a web page"),
        (pickle.dumps({"params": Code()}), "Python objects"),
        ((REFERENCE / "restormer_dual.pth").read_bytes()[:5000], "no readable PyTorch checkpoint"),
    ],
    ids=["absent", "empty", "pointer", "page", "code", "truncated"],
)
def test_other_files_are_refused_by_name(content, said, tmp_path, capfd):
    file = tmp_path / "file.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConvertError, match=said) as error:
        import_published(file)
    assert str(file) in str(error.value) and "ran" not in capfd.readouterr().out


@pytest.mark.parametrize("top_k", [0, 6])
def test_an_impossible_top_k_is_refused_by_name(top_k):
    with pytest.raises(ConvertError, match="--task-top-k"):
        import_published(REFERENCE / "restormer_dual.pth", top_k, 3)


def test_command_writes_a_loadable_student_and_never_overwrites(tmp_path, capsys):
    file, target = REFERENCE / "restormer_dual.pth", tmp_path / "out"
    main([str(file), str(target), "--task-top-k", "2", "--domain-top-k", "3"])
    printed = capsys.readouterr().out
    assert "cross_attn_q" in printed and "0.26 M parameters" in printed
    lq, expected = recorded("restormer_dual")[0]
    with torch.no_grad():
        torch.testing.assert_close(Student.from_pretrained(str(target))(lq), expected, atol=1e-5, rtol=0)
    main([str(target), str(tmp_path / "half"), "--half"])
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", target)]
    with torch.no_grad():
        halved = Student.from_pretrained(str(tmp_path / "half"))(lq)
    assert 0.5 <= sizes[0] / sizes[1] < 0.6 and 0 < (halved - expected).abs().max() < 0.01
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (target / "README.md").read_text()
    with pytest.raises(SystemExit, match="exists already"):
        main([str(file), str(target)])
