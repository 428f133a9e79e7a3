"""Decoding in worker processes: in order, bounded, and no file can hang or kill the run."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.captioning.decode import DecodePool, Job, decode
from student.images.workers import FileGivenUp, ImageWorkers
from teacher.square import Square

AS_IT_IS = Square(7)


def job(*paths, sha256: str | None = None) -> Job:
    sha256 = sha256 or hashlib.sha256(open(paths[0], "rb").read()).hexdigest()
    return Job(sha256, tuple(str(path) for path in paths), ("content",))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)).save(path)
    return path


@pytest.fixture(scope="module")
def workers():
    with ImageWorkers(workers=1, timeout_s=1.0) as workers:
        yield workers


def decoded(workers, job: Job) -> tuple:
    return workers.call(decode, job.sha256, job.paths, 10_000, AS_IT_IS)


def test_pixels_arrive_unchanged_in_a_square(workers, picture):
    path, status, image = decoded(workers, job(picture))
    assert (path, status, image.mode) == (str(picture), "ok", "RGB")
    padded = np.full((7, 7, 3), AS_IT_IS.fill, np.uint8)
    padded[1:6] = np.asarray(Image.open(picture))
    np.testing.assert_array_equal(np.asarray(image), padded)


def test_a_file_that_hangs_is_given_up_in_time_and_the_next_one_works(workers, picture, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert decoded(workers, job(picture))[1] == "ok", "its process is up"
    started = time.monotonic()
    with pytest.raises(FileGivenUp, match="took longer than 1 s to read and decode"):
        workers.call(Path.read_bytes, tmp_path / "fifo")  # blocks for ever, inside the kernel
    assert time.monotonic() - started < 8
    assert decoded(workers, job(picture))[1] == "ok"


def test_a_decoder_that_crashes_costs_one_image(workers, picture):
    with pytest.raises(FileGivenUp, match=r"the decoder died \(signal SIGSEGV\)"):
        workers.call(signal.raise_signal, signal.SIGSEGV)
    assert decoded(workers, job(picture))[1] == "ok"


def test_workers_end_with_their_captioner():
    code = """
import os
from student.images.workers import ImageWorkers
if __name__ == "__main__":
    workers = ImageWorkers(2, 60)
    print(workers.call(os.getpid), flush=True)
    os.kill(os.getpid(), 9)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
    deadline = time.monotonic() + 20
    while Path(f"/proc/{int(out)}/cmdline").is_file() and Path(f"/proc/{int(out)}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "a worker outlived the stage"
        time.sleep(0.1)


def test_the_first_path_that_still_has_the_indexed_bytes_is_used(picture, tmp_path):
    wanted = job(picture).sha256
    changed = tmp_path / "changed.png"
    changed.write_bytes(b"other bytes")
    path, status, _ = decode(wanted, (tmp_path / "gone.png", changed, picture), 10_000, AS_IT_IS)
    assert (path, status) == (picture, "ok")
    path, status, reason = decode(wanted, (changed, tmp_path / "gone.png"), 10_000, AS_IT_IS)
    assert (status, reason) == ("error", f"{tmp_path}/gone.png: No such file or directory")


def test_bad_image_names_the_fault(tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGB", (200, 200)).save(large)
    assert decode(job(large).sha256, (large,), 10_000, AS_IT_IS)[1:] == (
        "bad_image",
        "200x200 has more than 10000 pixels",
    )


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    status, reason = decode("0" * 64, (tmp_path / "fifo",), 10_000, AS_IT_IS)[1:]
    assert status == "error" and reason == f"{tmp_path}/fifo: no file but a pipe or device"


def test_the_pool_keeps_the_order_and_never_runs_far_ahead(picture, tmp_path):
    jobs = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        jobs.append(job(path))
    taken = []
    with ImageWorkers(workers=2, timeout_s=10) as workers:
        pool = DecodePool(workers, 10_000, Square(4))
        for number, decoded in enumerate(pool.run((taken.append(item) or item for item in jobs), 6)):
            assert decoded.image.getpixel((0, 0)) == (number, 0, 0) and len(taken) <= number + 6
    assert number == 39


def test_closing_ends_workers_in_the_middle_of_their_work():
    with ImageWorkers(workers=2, timeout_s=60) as workers:
        asked = [workers.threads.submit(workers.call, time.sleep, 60) for _ in range(4)]
        time.sleep(2)
        started = time.monotonic()
    assert time.monotonic() - started < 8
    assert all(call.exception() for call in asked)
