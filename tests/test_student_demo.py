"""The browser page, in headless Chromium: drop a file, see before and after, prompts and timing."""

import os
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import toy_training
from PIL import Image, ImageOps
from processes import free_port, serving
from skimage import data as photographs

from student import demo
from student.images.files import read_picture
from student.images.picture import upright

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("data") / "release", np.random.default_rng(0)
    toy_training.write_priors(folder, {f"{i:064x}": rng.normal(size=32) for i in range(9)})
    return folder


def test_what_the_page_shows(model, release, tmp_path):
    photo = np.ascontiguousarray(photographs.astronaut()[:96, 180:300])
    Image.fromarray(photo).save(tmp_path / "in.png")
    shown, words, file = demo.Demo(str(model), str(release), "cpu").restore(str(tmp_path / "in.png"))
    before, after = shown
    assert np.array_equal(before, photo) and after.shape == photo.shape and after.dtype == np.uint8
    assert "120 × 96" in words and "Task prompts</b>, of 4" in words and "waves" in words
    assert np.array_equal(np.asarray(Image.open(file)), after) and file.endswith("restored-in.png")


def test_captions_of_strangers_are_text(model, tmp_path):
    hostile = "![x](http://example.org/x.png) <img src=http://example.org/y.png>"
    page = demo.Demo(str(model), str(tmp_path / "none"), "cpu")
    page.explainer.explain = lambda _: {"nearest_captions": [{"similarity": 0.5, "captions": {"content": hostile}}]}
    Image.new("RGB", (16, 16)).save(tmp_path / "in.png")
    words = page.restore(str(tmp_path / "in.png"))[1]
    assert "<img" not in words and "&lt;img" in words


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_phone_picture_is_shown_upright(tmp_path, orientation):
    stored, exif = photographs.astronaut()[:40, 180:240], Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "in.png", exif=exif)
    seen = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "in.png")))
    turn = read_picture((tmp_path / "in.png").read_bytes()).orientation
    assert np.array_equal(upright(stored, turn), seen)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])  # Pillow turns the one when it decodes it, nobody the other
def test_a_turned_tiff_is_shown_upright(tmp_path, dtype):
    pixels, file = np.arange(4 * 6 * 3, dtype=dtype).reshape(4, 6, 3), tmp_path / "in.tif"
    tifffile.imwrite(file, pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)], metadata=None)
    picture = read_picture(file.read_bytes())
    shown = upright(picture.rgb[0], picture.orientation)
    assert shown.shape == (6, 4, 3) and np.array_equal(np.argsort(shown, None), np.argsort(np.rot90(pixels, -1), None))


def test_the_page_turns_before_and_after(model, release, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photographs.astronaut()[:96, 180:300]).save(tmp_path / "in.jpg", exif=exif)
    (before, after), words, _ = demo.Demo(str(model), str(release), "cpu").restore(str(tmp_path / "in.jpg"))
    assert before.shape == after.shape == (120, 96, 3) and "96 × 120" in words
    assert np.abs(before.astype(int) - after).mean() < 60, "both were turned"


def test_a_port_in_use_names_the_option(model, release, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert demo.main(["--model", str(model), "--release", str(release), "--port", port, "--device", "cpu"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"demo: port {port} is in use on 127.0.0.1; choose another with --port"
    )


def test_a_page_without_a_model_is_one_line(tmp_path, capsys):
    assert demo.main(["--model", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_in_a_browser(browser, model, release, tmp_path):
    Image.fromarray(photographs.astronaut()[:256, 100:400]).save(tmp_path / "in.png")
    port, said = free_port(), tmp_path / "said.txt"
    command = [sys.executable, "-m", "student.demo", "--model", str(model), "--release", str(release)]
    command += ["--port", str(port), "--device", "cpu"]
    with serving(command, url := f"http://127.0.0.1:{port}", said, env=os.environ | {"PYTHONPATH": str(ROOT)}):
        page = browser.new_page(viewport={"width": 1200, "height": 860})
        page.goto(url, timeout=120_000)
        page.set_input_files("input[type=file]", str(tmp_path / "in.png"), timeout=120_000)
        page.get_by_text("Task prompts").wait_for(timeout=120_000)
        assert page.get_by_text("300 × 256").count() == 1
        assert page.get_by_text("Nearest training captions").count() == 1
        pictures = page.locator("[data-testid=imageslider] img, .slider-wrap img, .image-container img, img")
        pictures.nth(1).wait_for(timeout=60_000)
        page.wait_for_function("[...document.images].filter(i => i.naturalWidth == 300).length >= 2")
        with page.expect_download() as download:
            page.get_by_text("Download, as the kind of file it was").click()
        assert Image.open(download.value.path()).size == (300, 256)
        page.screenshot(path=os.environ.get("DEMO_SCREENSHOT", tmp_path / "page.png"))
        (tmp_path / "no.png").write_bytes(b"no image")
        page.goto(url, timeout=120_000)
        page.set_input_files("input[type=file]", str(tmp_path / "no.png"), timeout=120_000)
        page.get_by_text("Not restored:").wait_for(timeout=60_000)
        page.wait_for_timeout(8000)
        assert page.get_by_text("Not restored:").is_visible(), "an error stays"
        assert page.evaluate("document.querySelector('.gradio-container main').offsetWidth") > 1100, "full width"
    assert "Traceback" not in said.read_text()
