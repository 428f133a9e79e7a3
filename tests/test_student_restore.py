"""student.restore as people use it: every kind of input, every option."""

import io
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pydicom
import pytest
import torch
import toy_training
from PIL import Image
from pydicom.data import get_testdata_file
from restore_project import PHOTO, run, start

from shards import open_release
from student.images import png16 as deep_png
from student.images.files import read_picture
from student.model import Student
from student.restoration.explain import Explainer, alike
from student.restoration.restorer import Restorer, load_student


def last_line(capsys) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_folder_of_every_kind_keeps_its_structure_and_kinds(model, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    (source / "deep" / "er").mkdir(parents=True)
    gray16 = np.asarray(Image.fromarray(PHOTO).convert("L")).astype(np.uint16) * 257
    files = {
        "photo.jpg": Image.fromarray(PHOTO),
        "deep/one_pixel.png": Image.fromarray(PHOTO[:1, :1]),
        "deep/er/rgba.png": Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]])),
        "deep/gray16.png": Image.fromarray(gray16),
        "cmyk.jpg": Image.fromarray(PHOTO).convert("CMYK"),
        "thin.webp": Image.fromarray(np.resize(PHOTO, (7, 5000, 3))),
        "scan.tif": Image.fromarray(gray16),
        "paint.bmp": Image.fromarray(PHOTO),
    }
    for name, image in files.items():
        image.save(source / name)
    truncated = (source / "photo.jpg").read_bytes()[:700]
    (source / "cut.jpg").write_bytes(truncated)
    (source / "empty.png").write_bytes(b"")
    (source / "notes.txt").write_text("not an image, not taken for one")
    assert run(model, source, out) == 1, "two could not be restored"
    printed = capsys.readouterr().err
    assert "cut.jpg: cannot be decoded" in printed and "empty.png: empty file" in printed
    assert "restored 8 of 10 images, 2 failed" in printed.strip().splitlines()[-1]
    assert {str(f.relative_to(out)) for f in out.rglob("*") if f.is_file()} == set(files)
    for name, image in files.items():
        with Image.open(out / name) as result:
            assert result.size == image.size and result.format == Image.open(source / name).format
    assert deep_png.bit_depth((out / "deep/gray16.png").read_bytes()) == 16
    assert np.array_equal(np.asarray(Image.open(out / "deep/er/rgba.png"))[..., 3], PHOTO[..., 0])
    restored = np.asarray(Image.open(out / "paint.bmp")).astype(int)
    assert np.abs(restored - PHOTO).mean() > 0.5, "the student changed the picture"


def test_finished_outputs_are_kept_until_overwrite(model, tmp_path, capsys):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    Image.fromarray(PHOTO[::-1]).save(tmp_path / "b.png")
    out = tmp_path / "out"
    assert run(model, tmp_path / "?.png", out, "--dry-run") == 0 and not out.exists()
    assert "would restore 2 of 2 images" in capsys.readouterr().out
    out.mkdir()
    (out / "a.png").write_bytes(b"kept")
    assert run(model, tmp_path / "?.png", out) == 0
    assert "restored 1 of 1 images, kept 1 that exist" in last_line(capsys)
    assert (out / "a.png").read_bytes() == b"kept" and Image.open(out / "b.png").size == (80, 64)
    assert run(model, tmp_path / "?.png", out) == 0
    assert "restored 0 images: all 2 outputs exist" in last_line(capsys)
    assert run(model, tmp_path / "?.png", out, "--overwrite") == 0
    assert Image.open(out / "a.png").size == (80, 64)


def test_another_suffix_converts_and_tiles_give_nearly_the_same(model, tmp_path, capsys):
    Image.fromarray(np.tile(PHOTO, (3, 2, 1))).save(tmp_path / "in.png")
    assert run(model, tmp_path / "in.png", tmp_path / "whole.tif", "--tile", "off") == 0
    assert run(model, tmp_path / "in.png", tmp_path / "tiled.png", "--tile", "96", "--batch", "2") == 0
    whole, tiled = Image.open(tmp_path / "whole.tif"), Image.open(tmp_path / "tiled.png")
    assert whole.format == "TIFF" and whole.size == tiled.size
    error = np.mean((np.asarray(whole, float) - np.asarray(tiled, float)) ** 2)
    assert 10 * np.log10(255**2 / error) > 35
    assert run(model, tmp_path / "in.png", tmp_path / "no.heic") == 1
    assert "cannot write .heic" in capsys.readouterr().err and not (tmp_path / "no.heic").exists()


def test_explain_names_prompts_and_nearest_captions(model, tmp_path, capsys):
    rng = np.random.default_rng(0)
    toy_training.write_priors(tmp_path / "release", {f"{i:064x}": rng.normal(size=32) for i in range(9)})
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    assert run(model, tmp_path / "in.png", tmp_path / "out.png", "--explain", "--release", tmp_path / "release") == 0
    about = json.loads((tmp_path / "out.png.explain.json").read_text())
    for pool in ("task", "domain"):
        weights = [prompt["weight"] for prompt in about[pool]["chosen"]]
        assert len(weights) == 2 and weights == sorted(weights, reverse=True)
        assert sum(weights) == pytest.approx(1, abs=1e-3)
    nearest = about["nearest_captions"]
    assert len(nearest) == 5 and nearest[0]["captions"] == {"content": "waves"}
    assert nearest[0]["similarity"] == max(row["similarity"] for row in nearest)
    assert run(model, tmp_path / "in.png", tmp_path / "o2.png", "--explain", "--release", tmp_path / "none") == 0
    missing = json.loads((tmp_path / "o2.png.explain.json").read_text())["captions_missing"]
    assert missing.count(str(tmp_path / "none")) == 1 and "no such release" in missing and "--release" in missing
    assert f"warning: explanations without captions: {missing}" in capsys.readouterr().err
    assert run(model, tmp_path / "in.png", tmp_path / "o2.png", "--explain") == 0
    assert "outputs exist (--overwrite" in last_line(capsys), "explained already"
    (tmp_path / "o2.png.explain.json").unlink()
    assert run(model, tmp_path / "in.png", tmp_path / "o2.png", "--explain") == 0
    assert "outputs exist, 1 without an explanation (--overwrite recreates them)" in last_line(capsys)


def test_prompts_are_told_as_tasks_by_who_uses_them(model, tmp_path):
    """A prompt that one task alone uses is that task's; one that two use alike, half of each."""
    composition = SimpleNamespace(weight_BK=torch.tensor([[0.75, 0.25]]), index_BK=torch.tensor([[2, 0]]))
    used = {"rain": [0.5, 0.1, 0.4, 0], "noise": [0.5, 0.5, 0, 0]}
    assert alike(composition, used, 4) == {"rain": 0.875, "noise": 0.125}
    assert list(alike(composition, dict(reversed(used.items())), 4)) == ["rain", "noise"], "the likeliest first"
    nobody = SimpleNamespace(weight_BK=torch.tensor([[1.0]]), index_BK=torch.tensor([[3]]))
    assert alike(nobody, used, 4) == {} and alike(composition, used, 5) == {}
    student = shutil.copytree(model, tmp_path / "student")
    (student / "curves").mkdir()
    (student / "curves/usage.json").write_text(json.dumps({"task": {"rain": [0.25] * 4, "noise": [0.25] * 4}}))
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    assert run(student, tmp_path / "in.png", tmp_path / "out.png", "--explain") == 0
    about = json.loads((tmp_path / "out.png.explain.json").read_text())
    assert about["task"]["like"] == {"noise": 0.5, "rain": 0.5} and "like" not in about["domain"]


def test_captions_of_another_release_explain_nothing(model, tmp_path, capsys):
    priors = {f"{i:064x}": np.random.default_rng(i).normal(size=32) for i in range(9)}
    toy_training.write_priors(tmp_path / "release", priors)
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    made = open_release(tmp_path / "release").manifest["embedding_fingerprint"]
    for fingerprint, fits in ((made, True), ("5" * 64, False)):
        student = Student.from_pretrained(model)
        student.embedding_fingerprint = fingerprint
        student.half().save_pretrained(tmp_path / fingerprint)
        assert Student.from_pretrained(tmp_path / fingerprint).embedding_fingerprint == fingerprint
        out = tmp_path / f"{fingerprint}.png"
        arguments = ("--explain", "--release", tmp_path / "release")
        assert run(tmp_path / fingerprint, tmp_path / "in.png", out, *arguments) == 0
        about = json.loads(out.with_name(out.name + ".explain.json").read_text())
        assert ("nearest_captions" in about) == fits
    assert f"holds embeddings {made[:16]}, this student was distilled from 5555555555555555" in capsys.readouterr().err


def test_of_a_volume_the_middle_slice_is_explained(model, tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 500, (32, 32, 5), dtype=np.int16) // np.arange(1, 6, dtype=np.int16)
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "in.nii")
    explained, explain = [], Explainer.explain
    monkeypatch.setattr(Explainer, "explain", lambda self, prompts: explained.append(prompts) or explain(self, prompts))
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    for name in ("in.nii", "in.png"):
        assert run(model, tmp_path / name, tmp_path / "out" / name, "--explain") == 0
    about = json.loads((tmp_path / "out" / "in.nii.explain.json").read_text())
    assert (about["slices"], about["explained_slice"]) == (5, 2)
    restorer = Restorer(load_student(str(model)), "cpu")
    slices = read_picture((tmp_path / "in.nii").read_bytes(), "in.nii").rgb.transpose(0, 3, 1, 2)
    weights = [restorer(lq).prompts.task.weight_BK for lq in slices]
    assert [torch.equal(explained[0].task.weight_BK, weight) for weight in weights] == [0, 0, 1, 0, 0]
    assert "slices" not in json.loads((tmp_path / "out" / "in.png.explain.json").read_text())


def test_images_of_other_kinds_in_a_folder_are_counted(model, tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(PHOTO).save(tmp_path / "in" / "a.png")
    for name in ("b.psd", "deep/c.HEIC", "d.jxl", "notes.txt", ".hidden.gif"):
        (tmp_path / "in" / name).write_bytes(b"")
    skipped = "skipped 3 files that are not supported (.heic, .jxl, .psd)"
    assert run(model, tmp_path / "in", tmp_path / "out", "--dry-run") == 0 and skipped in capsys.readouterr().out
    assert run(model, tmp_path / "in", tmp_path / "out") == 0
    assert f"restored 1 of 1 images, {skipped}" in last_line(capsys)
    assert run(model, tmp_path / "in", tmp_path / "out") == 0 and skipped in last_line(capsys)
    assert run(model, tmp_path / "in" / "deep", tmp_path / "out") == 2
    assert "no image in it" in (line := last_line(capsys)) and "skipped 1 file that is not supported (.heic)" in line


def test_dicom_is_known_by_its_content(model, tmp_path):
    data = Path(get_testdata_file("CT_small.dcm")).read_bytes()
    (tmp_path / "IM0001").write_bytes(data)
    assert run(model, tmp_path / "IM0001", tmp_path / "out.dcm") == 0
    done = start(model, "-", tmp_path / "piped.dcm", stdin=subprocess.PIPE)
    errors = done.communicate(data, timeout=600)[1].decode()
    assert done.returncode == 0, errors
    first, second = (pydicom.dcmread(tmp_path / name).pixel_array for name in ("out.dcm", "piped.dcm"))
    assert np.array_equal(first, second) and not np.array_equal(first, pydicom.dcmread(io.BytesIO(data)).pixel_array)


def test_standard_input_to_standard_output(model, tmp_path):
    data = io.BytesIO()
    Image.fromarray(PHOTO).save(data, "PNG")
    done = start(model, "-", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, errors = done.communicate(data.getvalue(), timeout=600)
    assert done.returncode == 0, errors.decode()
    assert Image.open(io.BytesIO(out)).size == (80, 64) and b"restored 1 of 1" in errors


def test_the_output_folder_may_be_above_or_inside_the_input_folder(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "album" / "2024").mkdir(parents=True)
    Image.fromarray(PHOTO).save("album/2024/a.png")
    assert run(model, "album/2024", "album") == 0 and (tmp_path / "album/a.png").is_file(), "above"
    assert run(model, "album/2024/*.png", ".") == 0 and (tmp_path / "a.png").is_file(), "above, by a pattern"
    assert run(model, "album", "album/out") == 0, "inside"
    assert run(model, "album", "album/out", "--dry-run") == 0
    assert "of 2 images" in capsys.readouterr().out, "outputs are not taken for inputs"
    assert run(model, "**/out/*.png", "album/out") == 2
    assert "no image in it (outside of album/out)" in last_line(capsys), "nothing to do is not a success"


def test_a_small_picture_is_enlarged_and_restored_as_the_kind_it_was(model, tmp_path, capsys):
    small, out = tmp_path / "in", tmp_path / "out"
    small.mkdir()
    Image.fromarray(PHOTO[:24, :20]).save(small / "a.jpg", quality=95)
    Image.fromarray(PHOTO[:24, :20]).convert("L").save(small / "gray.png")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(small / "deep.png")
    assert run(model, small, out, "--scale", "3") == 1
    assert "deep.png: --scale is for pictures of 8 bits" in capsys.readouterr().err
    with Image.open(out / "a.jpg") as large, Image.open(out / "gray.png") as gray:
        assert (large.format, large.size, large.mode) == ("JPEG", (60, 72), "RGB")
        assert (gray.format, gray.size, gray.mode) == ("PNG", (60, 72), "L")
    enlarged = Image.open(small / "gray.png").resize((60, 72), Image.Resampling.BICUBIC)
    assert run(model, small / "gray.png", tmp_path / "same.png", "--scale", "3", "--strength", "0") == 0
    off = np.abs(np.asarray(Image.open(tmp_path / "same.png"), float) - np.asarray(enlarged, float))
    assert off.mean() < 1, "the enlarged picture itself"


def test_scans_without_a_suffix_are_found_by_their_content(model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("IM0001", "1.2.840.77", "a.IMA"):
        (tmp_path / "in" / name).write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    (tmp_path / "in/README").write_text("no scan")
    assert run(model, tmp_path / "in", tmp_path / "out") == 0
    assert "restored 3 of 3 images" in last_line(capsys)
    assert all(pydicom.dcmread(file).Modality == "CT" for file in (tmp_path / "out").iterdir())
