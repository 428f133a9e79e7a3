"""recipes/mini.yaml, which makes the shipped student, through the ordinary commands on a few small pictures."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from skimage import data

from pipeline import caption, embed, index
from student import eval as evaluation
from student import train

RECIPE = Path(__file__).parents[1] / "recipes" / "mini.yaml"
SMALL = {
    "model.width": 4, "model.encoder_blocks": [1, 1, 1], "model.latent_blocks": 1, "model.decoder_blocks": [1, 1, 1],
    "train.max_steps": 3, "train.warmup_steps": 1, "train.batch_size": 20, "train.patch_size": 32,
    "train.compile": False, "train.num_workers": 0, "train.mixed_precision": "no", "train.trackers": [],
    "eval.panels": False,
}  # fmt: skip


def picture(number: int, gray: bool) -> Image.Image:
    image = (data.astronaut, data.chelsea, data.coffee)[number % 3]()
    image = image[40 * number : 40 * number + 72, 60:140]
    return Image.fromarray(image if not gray else image[..., 0])


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    root = tmp_path_factory.mktemp("mini")
    folders = {"photographs": False, "blue_marble": False, "mri": True, "ct": True}
    folders |= {f"test/{name}": False for name in ("CBSD68_every3rd", "Set14/gt", "BSD100_every5th/gt")}
    folders |= {"test/mri": True, "test/ct": True}
    for split in ("", "test/"):
        folders |= {f"{split}{cloud}/{side}": False for cloud in ("thin_cloud", "thick_cloud") for side in ("gt", "lq")}
    for place, (folder, gray) in enumerate(folders.items()):
        (root / "data" / folder).mkdir(parents=True)
        for number in range(2):
            seen = 2 * (place // 2 if "cloud" in folder else place) + number  # gt and lq show the same
            picture(seen % 7, gray).save(root / "data" / folder / f"{number}.png")
    for side, name in (("gt", "norain"), ("lq", "rain")):
        (root / "data/test/Rain100L_10" / side).mkdir(parents=True)
        picture(1, False).save(root / "data/test/Rain100L_10" / side / f"{name}-1.png")
    given = SMALL | {"index.root": str(root / "data"), "paths.caption_store": str(root / "store")}
    names = "index.parquet hash_cache.sqlite caption_shards caption_stats.json student metrics.json evaluation".split()
    keys = "index hash_cache release caption_stats student metrics evaluation".split()
    given |= {f"paths.{key}": str(root / name) for key, name in zip(keys, names, strict=True)}
    words = ["--params", str(RECIPE)]
    for key, value in given.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return root, words


def test_the_recipe_runs_from_index_to_scores_and_repeats(options):
    root, words = options
    assert index.main(words) == 0
    caption.main(words)
    embed.main(words)
    hashes = []
    for folder in ("student", "again"):
        AcceleratorState._reset_state(reset_partial_state=True)  # what another test left in this process
        assert train.main([*words, "--set", f"paths.student={root / folder}"]) == 0
        hashes.append(hashlib.sha256((root / folder / "model.safetensors").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1], "seeded: the same recipe gives the same student"
    measured = ["--out", str(root / "evaluation"), "--set", 'eval.baselines=["tv", "back_projection"]']
    assert evaluation.main([*words, *measured]) == 0
    results = json.loads((root / "evaluation/results.json").read_text())
    assert {"photo_noise", "photo_rain", "bsd100_sr_x4", "thin_cloud", "mri_noise"} <= set(results["datasets"])
    assert results["datasets"]["photo_clean"]["psnr_gain"] is None, "a clean input cannot gain"
    assert results["datasets"]["photo_noise"]["psnr_tv"] > results["datasets"]["photo_noise"]["psnr_input"]
    sr = results["datasets"]["photo_sr_x4"]
    assert sr["psnr_back_projection"] > sr["psnr_input"] and sr["psnr_tv"] is None
    assert np.isfinite(results["overall"]["psnr_gain"])
    assert "Bold: the best" in (root / "evaluation/table.md").read_text()
