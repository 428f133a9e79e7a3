"""Images in an object store from the index to a trained student: the commands, rows and captions of a local run."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import printed, run
from s3 import upload

from shards import open_release
from student import places


def call(where: Path, module: str, *arguments: str) -> str:
    return printed(where, "-m", module, *arguments, XDG_CACHE_HOME=str(where / "cache"))


def pictures(folder: Path, *names: str) -> None:
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / name)


def content(release) -> tuple:
    rows = [release.record(sha256) for sha256 in release.sha256s()]
    return rows, release.vectors().tobytes(), release.aliases().to_pylist(), release.manifest["parts"]


@pytest.mark.slow
def test_a_data_set_in_a_bucket_gives_the_release_of_a_folder(bucket, tmp_path):
    pictures(tmp_path / "data", "gt/a.png", "gt/b/c.jpg", "gt/d.webp")
    with tarfile.open(tmp_path / "data/gt.tar", "w") as archive:
        archive.add(tmp_path / "data/gt", "./gt")
    upload(tmp_path / "data", f"{bucket}/data")
    small = {"backbone": "nafnet", "width": 8, "encoder_blocks": [1], "latent_blocks": 1, "decoder_blocks": [1]}
    found = {}
    for name, root, gt, release in (
        ("local", str(tmp_path / "data"), "gt", "release"),
        ("s3", f"{bucket}/data", "gt", f"{bucket}/release"),
        ("tar", f"{bucket}/data", "gt.tar", "release"),
    ):
        split = {"gt": gt, "degradation": {"kind": "gaussian_noise", "sigma": 25}}
        splits = {"train": split, "val": split}
        sets = [{"name": "d", "domain": "natural", "task": "denoising", "splits": splits}]
        train = {"max_steps": 2, "batch_size": 2, "patch_size": 16, "val_every": 2, "num_workers": 1, "warmup_steps": 1}
        params = {"index": {"root": root, "datasets": sets}, "paths": {"release": release}, "train": train}
        params["model"] = {**small, "refinement_blocks": 0, "prompt_dim": None, "task_top_k": 1}
        where = tmp_path / name
        where.mkdir()
        (where / "params.yaml").write_text(json.dumps(params))
        call(where, "pipeline.index")
        call(where, "pipeline.caption")
        assert "verified" in call(where, "pipeline.embed")
        found[name] = content(open_release(release if places.is_remote(release) else where / release))
        if name == "s3":
            call(where, "shards", "verify", release)
            call(where, "student.train")
            assert (where / "artifacts/student/model.safetensors").exists()
            shutil.rmtree(where / "artifacts/caption_store")
            said = call(where, "pipeline.caption")
            assert "take their captions from s3://" in said, "a release is not paid for twice"
    assert found["s3"] == found["local"] == found["tar"]
    assert [row["path"] for row in found["s3"][2] if "c.jpg" in row["path"]] == ["gt/b/c.jpg"]


@pytest.mark.slow
def test_captions_of_a_folder_in_a_bucket(bucket, tmp_path):
    pictures(tmp_path / "photos", "a.png", "été/b 1.jpg")
    Image.fromarray(np.full((30, 30), 60000, np.uint16)).save(tmp_path / "photos/scan.tif")
    upload(tmp_path / "photos", f"{bucket}/photos")
    for place, out in ((str(tmp_path / "photos"), "here"), (f"{bucket}/photos", "there")):
        call(tmp_path, "pipeline.caption", place, out)
    assert (tmp_path / "here/captions.csv").read_bytes() == (tmp_path / "there/captions.csv").read_bytes()
    assert content(open_release(tmp_path / "here/release")) == content(open_release(tmp_path / "there/release"))
    page = (tmp_path / "there/page/part-00000.js").read_text()
    images = json.loads(page.removeprefix("add(").rstrip(");\n"))
    assert [image["path"] for image in images] == ["a.png", "scan.tif", "été/b 1.jpg"]
    for image in images:
        assert Image.open(tmp_path / "there" / image["src"]).format == "JPEG"
    done = run(tmp_path, "-m", "pipeline.caption", f"{bucket}/none", "out")
    assert done.returncode and "s3://lab/none: no such folder" in done.stderr and "Traceback" not in done.stderr
