"""Workers, memory and imports: the reader stays light wherever it goes."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT, printed
from shards_maker import expected, make_release, sha_of
from torch.utils.data import DataLoader, Dataset

import shards
from shards import ReleaseError, open_release

HEAVY = ("torch", "pandas", "yaml", "transformers", "datasets", "pydantic", "ruamel", "rich")


class Priors(Dataset):
    def __init__(self, release):
        self.release = release

    def __len__(self):
        return 60

    def __getitem__(self, i):
        sha256 = sha_of(i)
        vectors, found = self.release.lookup([sha256])
        return vectors[0], found[0], self.release.captions(sha256)["content"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataloader_may_hold_a_release(tmp_path, method):
    make_release(tmp_path / "r", rows_per_group=7, part_bytes=4000)
    release = open_release(tmp_path / "r", strict=True)
    release.captions(sha_of(0))  # used before the workers start: nothing that they inherit may be shared badly
    loader = DataLoader(Priors(release), batch_size=15, num_workers=2, multiprocessing_context=method)
    seen = 0
    for vectors, found, texts in loader:
        assert found.all()
        for vector, text in zip(vectors.numpy(), texts, strict=True):
            assert text.endswith(f"number {seen}.") and np.abs(vector - expected(seen)).max() < 1e-3
            seen += 1
    assert seen == 60


def test_a_pickled_release_is_that_release_or_an_error(tmp_path, monkeypatch):
    make_release(tmp_path / "r")
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(open_release("r").subset(domain="natural"))
    monkeypatch.chdir("/")
    assert len(pickle.loads(sent)) == 20
    make_release(tmp_path / "r", 10, 50)
    with pytest.raises(ReleaseError, match="another release took its place"):
        pickle.loads(sent)


def imported(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    return set(printed(ROOT, "-c", code).split())


def test_importing_shards_loads_nothing_heavy():
    assert imported("import shards, shards.__main__") == set()
    assert imported("import shards, pydantic") == {"pydantic"}  # the check can fail


def test_numpy_and_pyarrow_are_enough(tmp_path):
    """A process whose whole world is the standard library, numpy, pyarrow and this room."""
    make_release(tmp_path / "r")
    world = light_world(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from shards import open_release\n"
        "release = open_release(sys.argv[2], strict=True)\n"
        "print(len(release), release.lookup([sys.argv[3]])[1].all(), release.captions(sys.argv[3])['content'])\n"
        "try:\n    import torch\nexcept ImportError:\n    print('alone')"
    )
    said = printed(tmp_path, "-I", "-S", "-c", code, world, "r", sha_of(5))
    assert said.split("\n")[:2] == ["60 True A brain, number 5.", "alone"]


def light_world(folder: Path) -> Path:
    """A folder of links to numpy, pyarrow and shards: with `python -I -S`, nothing else can be imported."""
    import pyarrow

    world = folder / "world"
    world.mkdir()
    for package in (np, pyarrow, shards):
        place = Path(package.__file__).parent
        for path in (place, place.with_name(f"{place.name}.libs")):
            if path.is_dir():
                os.symlink(path, world / path.name)
    return world


def test_reading_costs_no_memory_of_its_own(tmp_path):
    """A release of 64 MB is looked up in full; private memory grows by the answers only."""
    rows = 8192
    vectors = np.random.default_rng(0).standard_normal((rows, 4096), dtype=np.float32)
    images = sorted(sha_of(i) for i in range(rows))
    table = {"image_sha256": images, "width": [1] * rows, "height": [1] * rows, "captions": [[]] * rows}
    import pyarrow as pa
    from shards_maker import IDENTITY

    table = pa.table({**table, "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4096)})
    shards.write_release(tmp_path / "r", [table], [], **IDENTITY, dim=4096)
    code = (
        "import sys\nfrom shards import open_release\n"
        "def private():\n"
        "    return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('RssAnon'))\n"
        "release = open_release(sys.argv[1]); images = release.sha256s(); release.lookup(images[:64])\n"
        "before = private()\n"
        "for i in range(0, len(images), 64): assert release.lookup(images[i : i + 64])[1].all()\n"
        "print(private() - before)"
    )
    assert int(printed(tmp_path, "-c", code, "r")) < 8 << 10  # KiB
