"""student.restore as people use it: every kind of input, hostile files, a full disk, no permission, Ctrl-C."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import restore_project
import torch
import toy_training
from PIL import Image
from skimage import data as photographs

from student import deep_png, restore
from student.model import Student

ROOT = Path(__file__).resolve().parents[1]
PHOTO = np.ascontiguousarray(photographs.astronaut()[40:104, 180:260])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return restore_project.save_student(tmp_path_factory.mktemp("model"))


def run(model, *arguments) -> int:
    return restore.main([*map(str, arguments), "--model", str(model), "--device", "cpu"])


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
    assert run(model, tmp_path / "in.png", tmp_path / "no.jp2") == 1
    assert "cannot write .jp2" in capsys.readouterr().err and not (tmp_path / "no.jp2").exists()


def test_explain_names_prompts_and_nearest_captions(model, tmp_path):
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
    assert "none" in json.loads((tmp_path / "o2.png.explain.json").read_text())["captions_missing"]


def test_standard_input_to_standard_output(model, tmp_path):
    data = io.BytesIO()
    Image.fromarray(PHOTO).save(data, "PNG")
    done = start(model, "-", "-", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, errors = done.communicate(data.getvalue(), timeout=200)
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


def test_links_are_followed_and_what_cannot_be_reached_is_reported(model, tmp_path, capsys):
    write_photos(tmp_path / "elsewhere", 2, side=32)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert run(model, tmp_path / "in", tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert "gone.png: No such file or directory" in errors and "restored 2 of 3 images, 1 failed" in errors
    assert sorted(file.name for file in (tmp_path / "out" / "linked").iterdir()) == ["00.png", "01.png"]


def test_an_output_that_cannot_be_encoded_does_not_stop_the_rest(model, tmp_path, capsys):
    write_photos(tmp_path / "in", 2, side=32)
    exif = Image.Exif()
    exif[0x010E] = "x" * 40_000
    first = io.BytesIO()
    Image.fromarray(PHOTO).save(first, "JPEG", exif=exif.tobytes())
    data = first.getvalue()
    at, length = data.index(b"\xff\xe1"), int.from_bytes(data[data.index(b"\xff\xe1") + 2 :][:2], "big")
    segment = data[at : at + 2 + length]  # a second one: Pillow joins them, and cannot write what it joined
    (tmp_path / "in" / "a_twice.jpg").write_bytes(data[:at] + segment + segment + data[at + 2 + length :])
    assert run(model, tmp_path / "in", tmp_path / "out") == 1
    errors = capsys.readouterr().err
    assert "a_twice.jpg: ValueError: EXIF data is too long" in errors and "restored 2 of 3 images, 1 failed" in errors


def test_pixels_that_are_not_finite_are_no_picture(tmp_path, capsys):
    folder = restore_project.save_student(tmp_path / "model")
    student = Student.from_pretrained(folder)
    with torch.no_grad():
        student.backbone.output.weight.fill_(float("nan"))
    student.save_pretrained(folder)
    write_photos(tmp_path / "in", 1, side=32)
    assert run(folder, tmp_path / "in", tmp_path / "out") == 1
    assert "not finite; is the model damaged?" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("missing.png", "out.png", "no such file or folder"),
        ("void", "out", "no image in it"),
        ("two", "a.png", "a.png is a file, but"),
        ("two", "-", "only one image can go to standard output"),
        ("a.png", "a.png", "over its own input"),
        ("-", "out", "name an output file"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_starts(tmp_path, monkeypatch, capsys, source, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "void").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.png", "two/b.png", "two/c.png"):
        Image.fromarray(PHOTO).save(name)
    assert restore.main([source, target]) == 2
    assert message in last_line(capsys)


def test_a_model_that_cannot_be_loaded_is_named(tmp_path, capsys):
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    assert run(tmp_path / "no-model", tmp_path / "in.png", tmp_path / "out.png") == 2
    error = capsys.readouterr().err
    assert "no-model" in error and "--model DIR" in error and "Traceback" not in error


def start(model, *arguments, prefix=(), **options) -> subprocess.Popen:
    command = [*prefix, sys.executable, "-m", "student.restore", *map(str, arguments), "--model", str(model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c, **options
    )


def heed_ctrl_c() -> None:
    """What a shell starts in the background, such as a run of the tests, ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def write_photos(folder: Path, count: int, side: int = 200) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")


def test_a_full_disk_stops_the_run_and_leaves_whole_files(model, tmp_path):
    write_photos(tmp_path / "in", 6)
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=400k none "$0" && "$@"; code=$?; cp -a "$0" "$0.after"; exit $code'
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, str(tmp_path / "disk"))
    done = start(model, tmp_path / "in", tmp_path / "disk", prefix=prefix)
    errors = done.communicate(timeout=240)[1].decode()
    assert done.returncode == 2 and "the disk is full" in errors and "Traceback" not in errors, errors
    left = sorted(file.name for file in (tmp_path / "disk.after").iterdir())
    assert left == [f"{i:02}.png" for i in range(len(left))] and 1 <= len(left) < 6
    for name in left:
        Image.open(tmp_path / "disk.after" / name).load()


def test_a_file_or_folder_without_permission_does_not_stop_the_rest(model, tmp_path):
    write_photos(tmp_path / "in", 3, side=32)
    write_photos(tmp_path / "in" / "private", 1, side=32)
    (tmp_path / "in" / "01.png").chmod(0)
    (tmp_path / "in" / "private").chmod(0)
    # Root reads everything, so the command gives that privilege up first.
    without = "-dac_override,-dac_read_search"
    prefix = ("setpriv", f"--bounding-set={without}", f"--inh-caps={without}") if os.geteuid() == 0 else ()
    done = start(model, tmp_path / "in", tmp_path / "out", prefix=prefix)
    errors = done.communicate(timeout=240)[1].decode()
    (tmp_path / "in" / "private").chmod(0o700)
    assert done.returncode == 1 and "01.png: Permission denied" in errors, errors
    assert "private: Permission denied" in errors, errors
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["00.png", "02.png"]


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(model, tmp_path):
    images = 100  # a few seconds of work, so that the signal comes in the middle on a loaded machine too
    write_photos(tmp_path / "in", images, side=160)
    out = tmp_path / "out"
    process = start(model, tmp_path / "in", out)
    deadline = time.monotonic() + 200
    while len(list(out.glob("*.png")) if out.exists() else []) < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == -signal.SIGINT and "stopped" in errors and "Traceback" not in errors
    finished = sorted(out.iterdir())
    assert 1 <= len(finished) < images and all(file.suffix == ".png" and file.name[0] != "." for file in finished)
    for file in finished:
        Image.open(file).load()
    times = {file: file.stat().st_mtime_ns for file in finished}
    assert run(model, tmp_path / "in", out) == 0
    assert len(list(out.iterdir())) == images and times == {file: file.stat().st_mtime_ns for file in finished}
