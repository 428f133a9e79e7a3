"""Four people's first hour, as the commands they type: a student with tasks of his own, a radiology lab, someone who
wants the captions of a folder, and someone with one photograph. Small real files from ordinary packages."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from skimage import data

COMMAND = str(Path(sys.executable).with_name("teachonce"))
NOISE = ("Traceback", "Warning", "defaults used instead", "kernels")
"""What no ordinary run prints: tracebacks, FutureWarning and its like, the launcher's list, hints at kernels."""
PHOTOS = ("astronaut", "coffee", "chelsea", "rocket")


@pytest.fixture
def walk(tmp_path):
    """`walk("verb ...")` in an empty folder: what it printed, and the folder."""
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | offline

    def run(line: str, code: int = 0) -> str:
        done = subprocess.run([COMMAND, *line.split()], cwd=tmp_path, env=environment, capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == code and not [x for x in NOISE if x in said], said
        return said

    run.folder = tmp_path
    return run


def photograph(name: str, side: int = 256) -> Image.Image:
    return Image.fromarray(getattr(data, name)()).convert("RGB").crop((0, 0, side, side))


@pytest.mark.slow
def test_three_tasks_of_ones_own_from_folders_to_a_report(walk):
    """Pairs on disk, noise on the fly, and low-resolution inputs as they are shipped."""
    for split, names in {"train": PHOTOS[:3], "val": PHOTOS[3:]}.items():
        for name in names:
            clean = photograph(name)
            for folder, picture in (("gt", clean), ("lq", clean.point(lambda v: v // 2)), ("small", clean.reduce(4))):
                (walk.folder / f"data/{split}/{folder}").mkdir(parents=True, exist_ok=True)
                picture.save(walk.folder / f"data/{split}/{folder}/{name}.png")

    def data_set(name: str, *more: dict, **of: object) -> dict:
        splits = {
            s: {"gt": f"{s}/gt", **{k: v.format(s) if k == "lq" else v for k, v in of.items()}}
            for s in ("train", "val")
        }
        return {"name": name, "domain": "natural", "task": name, "splits": splits, **dict(*more)}

    noise = {"kind": "gaussian_noise", "sigma": [5, 50]}
    sets = [
        data_set("dark", lq="{}/lq"),
        data_set("noise", degradation=noise),
        data_set("small", {"upsample": "bicubic"}, lq="{}/small"),
    ]
    train = {"max_steps": 6, "batch_size": 3, "patch_size": 32, "warmup_steps": 1, "val_every": 3, "num_workers": 0}
    small = {"backbone": "nafnet", "width": 8, "encoder_blocks": [1], "latent_blocks": 1, "decoder_blocks": [1]}
    params = {"index": {"root": "data", "datasets": sets}, "train": train}
    params["model"] = {**small, "refinement_blocks": 0, "prompt_dim": None, "task_top_k": 1}
    (walk.folder / "params.yaml").write_text(json.dumps(params))
    assert "0 leaked clean images, 0 alike; ready" in walk("index --check")
    walk("index")
    assert "4 new of 4 images" in walk("caption")
    walk("embed")
    assert "step 6 of 6" in walk("train")
    walk("eval")
    walk("report")
    metrics = json.loads((walk.folder / "artifacts/metrics.json").read_text())
    assert metrics["tasks"].keys() == {"dark", "noise", "small"}
    assert (walk.folder / "artifacts/report/index.html").exists()
    before = (walk.folder / "data/val/gt/rocket.png").read_bytes()
    assert "restored 1 of 1 images" in walk("restore data/val/lq out --model artifacts/student --explain")
    assert (walk.folder / "data/val/gt/rocket.png").read_bytes() == before


@pytest.mark.slow
def test_a_radiology_lab_with_scans_of_two_doses(walk):
    for dose, change in (("full", 0), ("quarter", 60)):
        for number in range(2):
            scan = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
            noise = np.random.default_rng(number).normal(0, change, scan.pixel_array.shape)
            scan.PixelData = (scan.pixel_array + noise).astype(np.int16).tobytes()
            name = ("IM0001", "1.2.840.5")[number] if dose == "full" else f"{number}.IMA"
            (walk.folder / dose).mkdir(exist_ok=True)
            scan.save_as(walk.folder / dose / name)
    assert "name the window in HU" in walk("prepare slices full png/full", code=1)
    for dose in ("full", "quarter"):
        assert "2 done" in walk(f"prepare slices {dose} png/{dose} --set prepare.window=[-160,240]")
    full, quarter = (
        np.asarray(Image.open(next((walk.folder / "png" / dose).iterdir()))) for dose in ("full", "quarter")
    )
    assert full.dtype == np.uint16 and abs(float(full.mean()) - float(quarter.mean())) < 3000, "one window for both"
    assert "restored 2 of 2 images" in walk("restore quarter restored --range -160 240")
    before, after = (pydicom.dcmread(walk.folder / folder / "0.IMA") for folder in ("quarter", "restored"))
    other = pydicom.dcmread(walk.folder / "restored/1.IMA")
    assert after.SeriesInstanceUID == other.SeriesInstanceUID != before.SeriesInstanceUID
    assert after.PatientID == before.PatientID and "DERIVED" in after.ImageType
    outside = (before.pixel_array * before.RescaleSlope + before.RescaleIntercept) > 240
    assert np.array_equal(after.pixel_array[outside], before.pixel_array[outside]), "bone keeps its numbers"


@pytest.mark.slow
def test_the_captions_of_a_folder(walk):
    (walk.folder / "photos/trip").mkdir(parents=True)
    for name in PHOTOS[:2]:
        photograph(name).save(walk.folder / f"photos/trip/{name}.jpg")
    shutil.copy(get_testdata_file("CT_small.dcm", download=False), walk.folder / "photos/scan.dcm")
    assert "2 files of photos" in walk("caption photos captions")
    with open(walk.folder / "captions/captions.csv", newline="", encoding="utf-8") as lines:
        rows = {row["file"]: row for row in csv.DictReader(lines)}
    assert rows.keys() == {"trip/astronaut.jpg", "trip/coffee.jpg"}
    assert "photograph" in rows["trip/coffee.jpg"]["content"]
    assert "sound" in walk("shards verify captions/release") and (walk.folder / "captions/index.html").exists()
    photograph("rocket").save(walk.folder / "photos/new.png")
    assert "1 new of 3 images" in walk("caption photos captions")


def test_one_photograph(walk):
    noisy = np.asarray(photograph("chelsea"), float) + np.random.default_rng(0).normal(0, 25, (256, 256, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(walk.folder / "cat.jpg", quality=95)
    assert "restored 1 of 1 images" in walk("restore cat.jpg clean.jpg")
    clean = np.asarray(photograph("chelsea"), float)
    error = {
        name: np.abs(np.asarray(Image.open(walk.folder / name)) - clean).mean() for name in ("cat.jpg", "clean.jpg")
    }
    assert error["clean.jpg"] < 0.7 * error["cat.jpg"]
    assert "all 1 outputs exist" in walk("restore cat.jpg clean.jpg")
    walk("restore cat.jpg half.jpg --strength 0.5")
    assert "no such file or folder" in walk("restore dog.jpg out.jpg", code=2)
