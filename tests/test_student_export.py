"""student.export: what onnxruntime computes is what the student computes, at sizes it was not exported at."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import restore_project
import torch
from toy_student import NAF, NO_PROMPTS, make_student

from student import export as exporting
from student.model import Student
from student.restoration.restorer import Restorer

ROOT = Path(__file__).resolve().parents[1]
SHALLOW = {"encoder_blocks": (1,), "decoder_blocks": (1,), "heads": (1, 2)}
SMALLEST = {**NO_PROMPTS, **SHALLOW}
"""What is quick to export, where only the operator set matters."""


def test_the_exported_student_equals_the_student_at_any_size(tmp_path, capsys):
    model = restore_project.save_student(tmp_path / "model", **SHALLOW)
    file = tmp_path / "new" / "student.onnx"
    assert exporting.main([str(model), str(file)]) == 0
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert f"opset {exporting.OPSET}, {file.stat().st_size / 1e6:.2f} MB" in line and "within" in line
    assert [entry.name for entry in file.parent.iterdir()] == ["student.onnx"], "weights inside, nothing left behind"
    graph = onnx.load(file)
    assert graph.opset_import[0].version == exporting.OPSET and graph.producer_name == exporting.PRODUCER
    assert graph.graph.input[0].name == "lq" and graph.graph.output[0].name == "restored"
    assert str(ROOT).encode() not in file.read_bytes() and b".py" not in file.read_bytes(), "no path of this machine"
    session, student = onnxruntime.InferenceSession(str(file)), Student.from_pretrained(str(model))
    for size in ((1, 3, 16, 16), (3, 3, 40, 88), (1, 3, 123, 77)):
        lq = np.random.default_rng(1).random(size, np.float32)
        (out,) = session.run(None, {"lq": lq})
        for image, ours in zip(lq, out, strict=True):
            expected = Restorer(student, "cpu", tile="off")(image).image
            assert np.abs(ours.clip(0, 1) - expected).max() < exporting.TOLERANCE, "as student.restore, mirrored"
        assert np.abs(out - lq).max() > 0.01, "and it is not the identity"


@pytest.mark.parametrize("error, said", [(2e-4, "2.0e-04"), (np.nan, "nan")])
def test_a_wrong_graph_is_not_written(error, said, tmp_path, monkeypatch):
    session = SimpleNamespace(run=lambda names, inputs: [inputs["lq"] + error])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *arguments, **options: session)
    program = SimpleNamespace(model_proto=onnx.ModelProto())
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **options: program)
    with pytest.raises(exporting.ExportError, match=f"differ by {said}"):
        exporting.export(make_student(zero_init_output=True), tmp_path / "out" / "student.onnx")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_operator_set_that_is_printed_is_the_one_in_the_file(tmp_path, capsys):
    model = restore_project.save_student(tmp_path / "model", **SMALLEST, **NAF)
    file = tmp_path / "student.onnx"
    file.write_bytes(onnx.ModelProto(ir_version=8, producer_name=exporting.PRODUCER).SerializeToString())
    assert exporting.main([str(model), str(file), "--opset", "17"]) == 0, "it replaces what was exported before"
    written = next(entry.version for entry in onnx.load(file).opset_import if entry.domain == "")
    assert f": opset {written} (torch.onnx cannot write 17)," in capsys.readouterr().out


def test_an_operator_set_that_does_not_exist_is_one_line(tmp_path, capsys):
    model = restore_project.save_student(tmp_path / "model", **SMALLEST)
    assert exporting.main([str(model), str(tmp_path / "out" / "student.onnx"), "--opset", "99"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("export: ") and "Traceback" not in "".join(errors), errors
    assert "opset" in errors[-1] and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["notes.onnx", "", "mine.onnx"])
def test_only_what_was_exported_here_is_replaced(tmp_path, name):
    """A neighbour's file, a folder, and a network of somebody else stay; refused before the work."""
    other = onnx.ModelProto(ir_version=8, producer_name="pytorch").SerializeToString()
    (tmp_path / "notes.onnx").write_text("my notes")
    (tmp_path / "mine.onnx").write_bytes(other)
    with pytest.raises(exporting.ExportError, match="is a folder; name a file" if not name else "name another file"):
        exporting.export(None, tmp_path / name)
    assert (tmp_path / "notes.onnx").read_text() == "my notes" and (tmp_path / "mine.onnx").read_bytes() == other


def test_a_missing_model_is_one_line(tmp_path, capsys):
    assert exporting.main([str(tmp_path / "none"), str(tmp_path / "x.onnx")]) == 1
    assert "none" in capsys.readouterr().err
