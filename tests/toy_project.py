"""A toy project for the stage tests: a tiny random LLaVA, small images, an index, a params.yaml."""

import atexit
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from random_llava import save_random_llava

REPOSITORY = Path(__file__).parents[1]
INDEX_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("dataset", "domain", "task", "split", "gt_path", "lq_path", "degradation")]
    + [("gt_sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32())]
    + [(name, pa.string()) for name in ("mode", "status", "error")]
)
PARAMS = """
paths: {{index: index.parquet, caption_store: store, release: release, caption_stats: caption_stats.json}}
caption:
  model: {model}
  max_new_tokens: 6
  batch_images: 4
  workers: 1
  flush_images: 10
  perspectives: {{content: What is it?, brightness: How bright is this image?}}
"""


@functools.cache
def toy_checkpoint() -> Path:
    """A complete LLaVA checkpoint with random weights, made once a test session."""
    directory = Path(tempfile.mkdtemp(prefix="toy-llava-"))
    atexit.register(shutil.rmtree, directory)
    return save_random_llava(directory)


class Project:
    """A working directory with images, an index and a params.yaml for the caption and embed stages."""

    def __init__(self, root: Path, n_images: int = 6, model: str | None = None):
        self.root = Path(root)
        self.rows: list[dict] = []
        for number in range(n_images):
            self.add(f"images/{number:05d}.png", number)
        self.write_index()
        self.params = self.root / "params.yaml"
        self.params.write_text(PARAMS.format(model=model or toy_checkpoint()))

    def add(self, name: str, seed: int, content: bytes | None = None) -> str:
        """Add an image file to the folder and the index table; returns its sha256."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        height, width = rng.integers(8, 24, 2)
        if content is None:
            Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        else:
            path.write_bytes(content)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        row = {"dataset": "toy", "domain": "natural", "task": "toy", "split": "train", "gt_path": name}
        row |= {"gt_sha256": sha256, "width": int(width), "height": int(height), "mode": "RGB", "status": "ok"}
        self.rows.append(row)
        return sha256

    def write_index(self) -> None:
        pq.write_table(pa.Table.from_pylist(self.rows, schema=INDEX_SCHEMA), self.root / "index.parquet")

    def start(self, stage: str, *arguments: str, **environment: str) -> subprocess.Popen:
        """The stage as a process of its own, as a user starts it."""
        return self.launch(["-m", f"pipeline.{stage}", *arguments], **environment)

    def launch(self, command: list[str], **environment: str) -> subprocess.Popen:
        """`python COMMAND` in the project."""
        offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.root,
            env=os.environ | offline | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def store_rows(self) -> dict[tuple[str, str], list[dict]]:
        """Every row in every part of the store, by (image, perspective)."""
        rows: dict[tuple[str, str], list[dict]] = {}
        for part in (self.root / "store").glob("*/part-*.parquet"):
            for row in pq.read_table(part, partitioning=None).to_pylist():
                rows.setdefault((row["image_sha256"], row["perspective"]), []).append(row)
        return rows

    def captions(self) -> dict[tuple[str, str], tuple]:
        """What the store says of every (image, perspective), provenance left out; fails on a doubled row."""
        keys = ("caption", "n_tokens", "finish_reason", "status", "error")
        rows = self.store_rows()
        assert all(len(group) == 1 for group in rows.values()), "an image was captioned twice"
        return {key: tuple(group[0][name] for name in keys) for key, group in rows.items()}
