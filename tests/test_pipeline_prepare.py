"""Preparations: the published kernel, the same noise for everyone, patches that cover, slices in their window."""

import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from pipeline import prepare
from student.data.degradations import DegradationSpec, degrade
from student.data.resize import resize_integers
from student.images import png16


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("paths: {}\n")
    rng = np.random.default_rng(0)
    Path("in/deep").mkdir(parents=True)
    for name, size in (("a.png", (24, 32, 3)), ("deep/b.png", (16, 20, 3)), ("gray.png", (8, 12))):
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(f"in/{name}")
    return tmp_path


def run(*arguments: str) -> int:
    return prepare.main(list(arguments))


def test_bicubic_inputs_have_gt_size_names_and_mode(folder, capsys):
    assert run("bicubic", "in", "out") == 0
    for name in ("a.png", "deep/b.png", "gray.png"):
        gt, lq = Image.open(f"in/{name}"), Image.open(f"out/{name}")
        assert (gt.size, gt.mode) == (lq.size, lq.mode)
        assert np.asarray(lq, float).std() < np.asarray(gt, float).std(), "detail is gone"
    assert "3 done, 0 were there, 0 faults" in capsys.readouterr().out


def test_an_enlarged_image_is_what_bicubic_inputs_are(folder):
    """Down by the kernel, stored, and enlarged: the same as both at once, also in 16 bits and gray."""
    Path("small").mkdir()
    for name in ("a.png", "gray.png"):
        gt = np.atleast_3d(np.asarray(Image.open(f"in/{name}")))
        small = resize_integers(gt, gt.shape[0] // 4, gt.shape[1] // 4)
        Image.fromarray(small.squeeze()).save(f"small/{name}")
    Path("small/deep.png").write_bytes(png16.write(np.full((3, 5, 1), 40_000, np.uint16)))
    assert run("enlarge", "small", "large") == 0 and run("bicubic", "in", "out") == 0
    for name in ("a.png", "gray.png"):
        assert np.array_equal(np.asarray(Image.open(f"large/{name}")), np.asarray(Image.open(f"out/{name}")))
    deep = np.asarray(Image.open("large/deep.png"))
    assert deep.shape == (12, 20) and (deep == 40_000).all()


def test_crops_are_multiples_and_keep_their_pixels(folder):
    assert run("crop", "in", "out", "--set", "prepare.scale=5") == 0
    whole, cropped = (np.asarray(Image.open(f"{where}/deep/b.png")) for where in ("in", "out"))
    assert np.array_equal(cropped, whole[:15, :20])


def test_a_second_run_does_nothing_and_new_settings_do_everything(folder, capsys):
    assert run("noise", "in", "out") == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*.png")}
    stamps = {path: path.stat().st_mtime_ns for path in before}
    assert run("noise", "in", "out") == 0
    assert "0 done, 3 were there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == stamps
    Path("out/.done/a.png.txt").unlink()  # killed before the marker of a.png was written
    assert run("noise", "in", "out") == 0
    assert "1 done, 2 were there" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before
    assert run("noise", "in", "out", "--set", "prepare.sigma=50") == 0
    assert "3 done" in capsys.readouterr().out and Path("out/a.png").read_bytes() != before[Path("out/a.png")]


def test_stored_noise_is_what_evaluation_adds_on_the_fly(folder):
    """Seeded by the file name: student/data/dataset.py uses the same number."""
    assert run("noise", "in", "out", "--set", "prepare.sigma=15") == 0
    gt = np.asarray(Image.open("in/a.png"), np.float32) / 255
    spec = DegradationSpec(kind="gaussian_noise", sigma=15)
    expected = degrade(gt, spec, np.random.default_rng(zlib.crc32(b"a.png"))) * 255
    assert np.array_equal(np.asarray(Image.open("out/a.png")), np.round(expected))


def test_patches_cover_the_image_and_keep_its_pixels(folder):
    assert run("patches", "in", "out", "--set", "prepare.patch=10", "--set", "prepare.stride=8") == 0
    image = np.asarray(Image.open("in/a.png"))
    tops, lefts = (0, 8, 14), (0, 8, 16, 22)
    for row, top in enumerate(tops):
        for column, left in enumerate(lefts):
            patch = np.asarray(Image.open(f"out/a_s{row:03}_{column:03}.png"))
            assert np.array_equal(patch, image[top : top + 10, left : left + 10])
    assert len(list(Path("out").glob("a_s*.png"))) == 12


def volume(path: str, values: np.ndarray, affine: np.ndarray) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values, affine), path)


def test_slices_keep_sixteen_bits_inside_the_window(folder):
    values = np.zeros((6, 5, 4), np.int16)
    values[..., 1:] = np.arange(6 * 5 * 3).reshape(6, 5, 3) * 10 + 1
    volume("in/brain.nii.gz", values, np.eye(4))
    assert run("slices", "in", "out", "--set", "prepare.window=[0, 500]") == 0
    files = sorted(Path("out").glob("*.png"))
    assert [file.name for file in files] == ["brain_0001.png", "brain_0002.png", "brain_0003.png"], "0 is empty"
    plane = np.asarray(Image.open(files[0]))
    expected = np.rot90(np.clip(values[..., 1] / np.float32(500), 0, 1)) * 65535
    assert plane.dtype == np.uint16 and np.array_equal(plane, np.round(expected))


def test_slices_do_not_depend_on_the_order_a_file_stores_its_axes_in(folder):
    values = np.random.default_rng(1).integers(1, 900, (6, 5, 4)).astype(np.int16)
    volume("in/ras.nii", values, np.eye(4))
    volume("in/las.nii", values[::-1], np.diag([-1.0, 1, 1, 1]))
    assert run("slices", "in", "out") == 0
    assert Path("out/ras_0002.png").read_bytes() == Path("out/las_0002.png").read_bytes()


def test_faults_are_named_and_the_rest_is_done(folder, capsys):
    Path("in/broken.png").write_bytes(Path("in/a.png").read_bytes()[:200])
    Image.new("RGB", (10, 9)).save("in/odd.png")
    assert run("bicubic", "in", "out") == 1
    said = capsys.readouterr()
    assert "in/broken.png: cannot be decoded" in said.err and "in/odd.png: 10x9 is no multiple of 4" in said.err
    assert "3 done, 0 were there, 2 faults" in said.out and not Path("out/odd.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("noise", "nowhere", "out"), "nowhere: no such folder"),
        (("noise", "in", "in"), "is where the inputs lie"),
        (("slices", "in", "out"), "no file that ends in .dcm .dicom .ima .nii .nii.gz"),
        (("noise", "in", "out", "--set", "prepare.sigmo=1"), "did you mean 'sigma'"),
    ],
)
def test_wrong_calls_answer_in_one_line(folder, capsys, arguments, message):
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err


def test_help_shows_every_command(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = capsys.readouterr().out
    assert all(f"pipeline.prepare {command} " in said for command in prepare.COMMANDS)


def test_patches_are_upright_over_white_and_keep_16_bits(tmp_path, folder):
    exif, deep = Image.Exif(), np.random.default_rng(0).integers(0, 65536, (8, 12, 3), dtype=np.uint16)
    exif[274] = 6
    stored = np.random.default_rng(1).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Path("odd").mkdir()
    Image.fromarray(stored).save("odd/turned.png", exif=exif)
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save("odd/clear.png")
    Path("odd/deep.png").write_bytes(png16.write(deep))
    assert run("patches", "odd", "out") == 0
    assert np.array_equal(np.asarray(Image.open("out/turned_s000_000.png")), np.rot90(stored, -1))
    assert (np.asarray(Image.open("out/clear_s000_000.png")) == 255).all()
    assert np.array_equal(png16.read(Path("out/deep_s000_000.png").read_bytes()), deep)


def test_dicom_is_known_by_its_content_and_only_pictures_are_cut(folder, capsys):
    for name, changes in {"IM0001": {}, "1.2.840.5": {}, "scan.IMA": {}, "dose": {"Modality": "RTDOSE"}}.items():
        scan = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        for key, value in {"RescaleIntercept": None, **changes}.items():
            setattr(scan, key, value)
        Path("scans").mkdir(exist_ok=True)
        scan.save_as(Path("scans") / name)
    Path("scans/README").write_text("no scan")
    assert run("slices", "scans", "cut") == 1, "CT without a window"
    assert "name the window in HU" in (said := capsys.readouterr().err) and "a grid of radiation doses" in said
    assert run("slices", "scans", "cut", "--set", "prepare.window=[0, 2000]") == 1
    assert "1 faults" in capsys.readouterr().out
    assert len(list(Path("cut").glob("*.png"))) == 3
