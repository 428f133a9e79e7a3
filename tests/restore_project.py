"""A small student on disk whose weights are random but not the identity, images for it, and student.restore as a
function and as a process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data as photographs

from student import restore
from student.model import Student
from student.network.config import ModelConfig

ROOT = Path(__file__).resolve().parents[1]
PHOTO = np.ascontiguousarray(photographs.astronaut()[40:104, 180:260])

MODEL = ModelConfig(
    width=8, encoder_blocks=(1, 1), latent_blocks=1, decoder_blocks=(1, 1), refinement_blocks=0, heads=(1, 2, 4),
    task_pool_size=4, task_top_k=2, domain_pool_size=4, domain_top_k=2, prompt_dim=32, zero_init_output=False,
)  # fmt: skip


def save_student(folder: Path, **changes) -> Path:
    torch.manual_seed(0)
    student = Student(MODEL.model_copy(update=changes))
    with torch.no_grad():  # a visible change that does not leave [0, 1] everywhere
        for parameter in student.backbone.output.parameters():
            parameter.mul_(0.3)
    student.save_pretrained(folder)
    return folder


def write_photos(folder: Path, count: int, side: int = 200) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")


def run(model, *arguments) -> int:
    return restore.main([*map(str, arguments), "--model", str(model), "--device", "cpu"])


def start(model, *arguments, prefix=(), **options) -> subprocess.Popen:
    command = [*prefix, sys.executable, "-m", "student.restore", *map(str, arguments), "--model", str(model)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [*command, "--device", "cpu"], env=environment, stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c, **options
    )


def heed_ctrl_c() -> None:
    """What a shell starts in the background, such as a run of the tests, ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
