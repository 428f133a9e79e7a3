"""Settings for every test, inherited by the processes that tests start."""

import os
import random
import shutil
import tempfile

import pytest
from hypothesis import settings

pytest_plugins = ["s3"]

# Two cores, and often two test processes: more threads only wait for each other. The second is what the trainer keeps
# (student/machine.py). OMP_THREAD_LIMIT is no way to say so: a backward pass planned for two threads waits for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
# The same numbers on a machine with a GPU: runs of this process are compared bit for bit with runs on the CPU.
os.environ.setdefault("ACCELERATE_USE_CPU", "1")
# And no GPU at all for code that takes one by itself: no test is about one.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# No test may ask a model hub, nor write to the home folder, which may not be there.
os.environ["HF_HUB_OFFLINE"] = "1"
_datasets = tempfile.TemporaryDirectory(prefix="datasets-")
os.environ["HF_DATASETS_CACHE"] = _datasets.name
_cache = tempfile.TemporaryDirectory(prefix="cache-")
os.environ["XDG_CACHE_HOME"] = _cache.name
# Many CI services set these, and progress bars then take a pipe for a terminal.
for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)

# The same numbers every time, so that a run can fail only by what changed; another TEACHONCE_TEST_SEED draws others,
# to find a test that holds by luck (`TEACHONCE_TEST_SEED=1 pytest`).
SEED = int(os.environ.get("TEACHONCE_TEST_SEED", "0"))
settings.register_profile("repeatable", derandomize=SEED == 0, database=None, deadline=None)
settings.load_profile("repeatable")


def _seed() -> None:
    import numpy as np  # not above: both read their number of threads, set there, as they are imported
    import torch

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    _seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    _seed()


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory):
    """The images, index.parquet and release/ of toy_training.py, to be read only."""
    import toy_training

    folder = tmp_path_factory.mktemp("toy")
    toy_training.make_data(folder)
    return folder


@pytest.fixture
def room(toy_data, tmp_path):
    """The same data, and an empty place for a student."""
    import toy_training

    return toy_training.beside(toy_data, tmp_path)


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of restore_project.py's student, to be read only."""
    import restore_project

    return restore_project.save_student(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def checkpoint():
    """The folder of toy_project.py's LLaVA, to be read only."""
    import toy_project

    return toy_project.toy_checkpoint()


@pytest.fixture
def browser():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "this test needs a browser: apt-get install chromium"
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
