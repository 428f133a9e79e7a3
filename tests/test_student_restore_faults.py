"""student.restore where something is wrong: arguments, files, model, disk, permission, Ctrl-C."""

import errno
import io
import os
import signal
import time
from pathlib import Path

import pytest
import restore_project
import torch
from PIL import Image
from restore_project import PHOTO, run, start, write_photos

from student import restore
from student.model import Student
from student.restoration import paths as restore_paths
from student.restoration import run as restore_run


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
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_model_that_cannot_be_loaded_is_named(tmp_path, capsys):
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    assert run(tmp_path / "no-model", tmp_path / "in.png", tmp_path / "out.png") == 2
    error = capsys.readouterr().err
    assert "no-model" in error and "--model DIR" in error and "Traceback" not in error


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
    assert "a_twice.jpg: JPEG holds no EXIF above 64 kB" in errors and "restored 2 of 3 images, 1 failed" in errors


def test_pixels_that_are_not_finite_are_no_picture(tmp_path, capsys):
    folder = restore_project.save_student(tmp_path / "model")
    student = Student.from_pretrained(folder)
    with torch.no_grad():
        student.backbone.output.weight.fill_(float("nan"))
    student.save_pretrained(folder)
    write_photos(tmp_path / "in", 1, side=32)
    assert run(folder, tmp_path / "in", tmp_path / "out") == 1
    assert "not finite; is the model damaged?" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_file_that_takes_for_ever_to_decode_costs_only_itself(model, tmp_path, capsys, monkeypatch):
    photos = tmp_path / "in"
    write_photos(photos, 1)
    Image.new("L", (20_000, 20_000)).save(photos / "huge.png")  # half a megabyte, seconds of decoding
    monkeypatch.setattr(restore_run, "READ_SECONDS", 0.5)
    with restore_run.ImageWorkers(1, 60) as worker:
        worker.call(str)  # the fork server is up, so that only the decoding counts
    assert run(model, photos, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "huge.png: took longer than 0.5 s to read and decode" in said and "restored 1 of 2 images" in said
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["00.png"]


def test_a_full_disk_stops_the_run_and_leaves_whole_files(model, tmp_path):
    write_photos(tmp_path / "in", 6)
    (tmp_path / "disk").mkdir()
    script = 'mount -t tmpfs -o size=400k none "$0" && "$@"; code=$?; cp -a "$0" "$0.after"; exit $code'
    prefix = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, str(tmp_path / "disk"))
    done = start(model, tmp_path / "in", tmp_path / "disk", prefix=prefix)
    errors = done.communicate(timeout=600)[1].decode()
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
    errors = done.communicate(timeout=600)[1].decode()
    (tmp_path / "in" / "private").chmod(0o700)
    assert done.returncode == 1 and "01.png: Permission denied" in errors, errors
    assert "private: Permission denied" in errors, errors
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["00.png", "02.png"]


def test_an_output_folder_that_cannot_be_written_to_is_named_before_any_work(model, tmp_path):
    write_photos(tmp_path / "in", 1, side=32)
    (tmp_path / "out").mkdir(mode=0o500)
    without = "-dac_override,-dac_read_search"
    prefix = ("setpriv", f"--bounding-set={without}", f"--inh-caps={without}") if os.geteuid() == 0 else ()
    # No model is there either: it is not even looked for.
    done = start(tmp_path / "no-model", tmp_path / "in", tmp_path / "out" / "deep", prefix=prefix)
    errors = done.communicate(timeout=600)[1].decode()
    assert done.returncode == 2 and errors.splitlines() == [
        f"restore: {tmp_path}/out: no permission to write there; name another output folder"
    ]


def test_what_cannot_be_written_names_the_output(model, tmp_path, capsys, monkeypatch):
    write_photos(tmp_path / "in", 1, side=32)
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    assert run(model, tmp_path / "in", tmp_path / "in.png" / "below") == 2
    assert "in.png is a file, and outputs should go below it" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(restore_paths, "write_file", raise_permission_error)
    assert run(model, tmp_path / "in", tmp_path / "out") == 1
    assert f"00.png: cannot write {tmp_path}/out/00.png: Permission denied" in capsys.readouterr().err


def raise_permission_error(*_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_a_full_standard_output_is_called_that(model, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "in.png")
    with open("/dev/full", "wb") as full:
        done = start(model, tmp_path / "in.png", "-", stdout=full)
        errors = done.communicate(timeout=600)[1].decode()
    assert done.returncode == 2 and "standard output: the disk is full" in errors, errors
    assert "None" not in errors and "Exception ignored" not in errors


def test_a_name_of_as_many_bytes_as_a_file_system_takes(model, tmp_path):
    (tmp_path / "in").mkdir()
    name = "写" * 83 + ".png"
    Image.fromarray(PHOTO).save(tmp_path / "in" / name)
    assert len(name.encode()) == 253 and run(model, tmp_path / "in", tmp_path / "out") == 0
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_on_a_cpu_is_warned_of(model, tmp_path, capsys, dtype):
    Image.fromarray(PHOTO[:16, :16]).save(tmp_path / "in.png")
    run(model, tmp_path / "in.png", tmp_path / "out.png", "--dtype", dtype)
    assert f"warning: --dtype {dtype} can be over 20 times as slow on a CPU" in capsys.readouterr().err
    run(model, tmp_path / "in.png", tmp_path / "float.png")
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0, 0.2, 0.5])
def test_ctrl_c_while_it_loads_is_one_line(model, tmp_path, seconds):
    write_photos(tmp_path / "in", 1, side=32)
    process = start(model, tmp_path / "in", tmp_path / "out")
    status = Path(f"/proc/{process.pid}/status")
    deadline = time.monotonic() + 60
    while not caught(status, signal.SIGTERM):  # before, it is Python itself that starts
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=600)[1].decode()
    assert process.returncode == -signal.SIGINT and "Traceback" not in errors
    assert errors.splitlines()[0].startswith("restore: stopped"), errors


def caught(status: Path, number: int) -> bool:
    """Whether the process has a handler for this signal."""
    mask = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(model, tmp_path):
    images = 100  # a few seconds of work, so that the signal comes in the middle on a loaded machine too
    write_photos(tmp_path / "in", images, side=112)
    out = tmp_path / "out"
    process = start(model, tmp_path / "in", out)
    deadline = time.monotonic() + 200
    while len(list(out.glob("*.png")) if out.exists() else []) < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=600)[1].decode()
    assert process.returncode == -signal.SIGINT and "stopped" in errors and "Traceback" not in errors
    finished = sorted(out.iterdir())
    assert 1 <= len(finished) < images and all(file.suffix == ".png" and file.name[0] != "." for file in finished)
    for file in finished:
        Image.open(file).load()
    times = {file: file.stat().st_mtime_ns for file in finished}
    assert run(model, tmp_path / "in", out) == 0
    assert len(list(out.iterdir())) == images and times == {file: file.stat().st_mtime_ns for file in finished}
