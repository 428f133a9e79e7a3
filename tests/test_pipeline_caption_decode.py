"""Decoding in worker processes: in order, bounded, and no file can hang or kill the run."""

import hashlib
import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from pipeline.captioning.decode import DecodePool, Decoder, Job


def job(*paths, sha256: str | None = None) -> Job:
    sha256 = sha256 or hashlib.sha256(open(paths[0], "rb").read()).hexdigest()
    return Job(sha256, tuple(str(path) for path in paths), ("content",))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)).save(path)
    return path


@pytest.fixture
def decoder():
    decoder = Decoder(timeout_s=1.0, max_pixels=10_000)
    yield decoder
    decoder.close()


def test_pixels_arrive_unchanged(decoder, picture):
    path, status, image = decoder(job(picture))
    assert (path, status, image.mode) == (str(picture), "ok", "RGB")
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(picture)))


def test_a_file_that_hangs_is_given_up_in_time_and_the_next_one_works(decoder, picture, tmp_path):
    os.mkfifo(tmp_path / "fifo")  # reading it blocks for ever, inside the kernel
    assert decoder(job(picture))[1] == "ok", "its process is up"
    started = time.monotonic()
    _, status, reason = decoder(job(tmp_path / "fifo", sha256="0" * 64))
    assert (status, reason) == ("error", "took longer than 1 s to read and decode")
    assert time.monotonic() - started < 5
    assert decoder(job(picture))[1] == "ok"


def test_a_decoder_that_crashes_costs_one_image(picture, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    decoder = Decoder(timeout_s=30.0, max_pixels=10_000)
    threading.Timer(0.5, decoder.process.send_signal, [signal.SIGSEGV]).start()
    assert decoder(job(tmp_path / "fifo", sha256="0" * 64))[1:] == ("error", "the decoder died (signal SIGSEGV)")
    assert decoder(job(picture))[1] == "ok"
    decoder.close()


def test_workers_end_with_their_captioner(picture):
    decoder = Decoder(timeout_s=30.0, max_pixels=10_000)
    decoder.connection.close()  # what the kernel does when the captioner is killed
    assert decoder.process.wait(60) == 0


def test_the_first_path_that_still_has_the_indexed_bytes_is_used(decoder, picture, tmp_path):
    wanted = job(picture).sha256
    changed = tmp_path / "changed.png"
    changed.write_bytes(b"other bytes")
    path, status, _ = decoder(job(tmp_path / "gone.png", changed, picture, sha256=wanted))
    assert (path, status) == (str(picture), "ok")
    path, status, reason = decoder(job(changed, tmp_path / "gone.png", sha256=wanted))
    assert (status, reason) == ("error", f"{tmp_path}/gone.png: No such file or directory")


def test_bad_image_names_the_file_at_fault(decoder, tmp_path):
    Image.new("RGB", (200, 200)).save(tmp_path / "large.png")
    assert decoder(job(tmp_path / "large.png"))[1:] == ("bad_image", "200x200 has more than 10000 pixels")


def test_the_pool_keeps_the_order_and_never_runs_far_ahead(picture, tmp_path):
    jobs = []
    for number in range(40):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
        jobs.append(job(path))
    taken = []
    pool = DecodePool(workers=2, timeout_s=10, max_pixels=10_000)
    try:
        results = pool.run((taken.append(item) or item for item in jobs), lambda image: image.getpixel((0, 0))[0], 6)
        for number, decoded in enumerate(results):
            assert decoded.pixels == number and len(taken) <= number + 6
    finally:
        pool.close()
    assert number == 39


def test_closing_ends_workers_in_the_middle_of_their_work(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    pool = DecodePool(workers=2, timeout_s=60, max_pixels=10_000)
    results = pool.run([job(tmp_path / "fifo", sha256="0" * 64)] * 10, lambda image: image, 4)
    threading.Thread(target=lambda: next(results, None), daemon=True).start()
    time.sleep(0.3)
    started = time.monotonic()
    pool.close()
    assert time.monotonic() - started < 5
    assert all(decoder.process.returncode is not None for decoder in pool.decoders)
