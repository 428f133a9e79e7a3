"""Small releases for the tests of the shards room: deterministic rows, and a handful of sources."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from shards import ReleaseError, open_release, write_release
from shards.manifest import dump
from shards.verify import verify
from shards.writer import vector_offsets

PERSPECTIVES = ("brightness", "content")
DOMAINS = {"natural": "forest", "remote_sensing": "building", "medical": "brain"}
IDENTITY = {
    "teacher": {"model": "some/llava", "revision": "1234"},
    "embedder": {"model": "some/encoder", "revision": "5678"},
    "fingerprints": {p: hashlib.sha256(p.encode()).hexdigest() for p in PERSPECTIVES},
    "teacher_fingerprint": hashlib.sha256(b"teacher").hexdigest(),
}


def sha_of(i: int) -> str:
    """sha256 of the bytes that `image_bytes(i)` gives."""
    return hashlib.sha256(image_bytes(i)).hexdigest()


def image_bytes(i: int) -> bytes:
    return b"image %d" % i


def domain_of(i: int) -> str:
    return list(DOMAINS)[i % 3]


def make_rows(start: int, stop: int, dim: int = 16) -> list[dict]:
    """Rows whose vectors cluster by domain and are a function of the number alone."""
    rows = []
    for i in range(start, stop):
        noise = np.random.default_rng(i).standard_normal(dim)
        centre = np.random.default_rng(10_000 + i % 3).standard_normal(dim)
        captions = [
            {
                "perspective": perspective,
                "text": f"A {DOMAINS[domain_of(i)]}, number {i}."
                if perspective == "content"
                else 'Bright, ünd "fair".',
                "n_tokens": 5 + i % 7,
                "finish_reason": "length" if i % 10 == 0 else "stop",
            }
            for perspective in ("content", "brightness")
        ]
        row = {"image_sha256": sha_of(i), "width": 10 + i, "height": 20, "captions": captions}
        rows.append(row | {"embedding": (3 * centre + noise).astype(np.float32)})
    return sorted(rows, key=lambda row: row["image_sha256"])


def make_aliases(start: int, stop: int) -> list[tuple]:
    return [(f"gt/{i}.png", f"set{i % 2}", domain_of(i), sha_of(i)) for i in range(start, stop)]


def make_release(folder, start: int = 0, stop: int = 60, dim: int = 16, **changes) -> dict:
    arguments = {**IDENTITY, "dim": dim, **changes}
    return write_release(folder, make_rows(start, stop, dim), make_aliases(start, stop), **arguments)


def expected(i: int, dim: int = 16) -> np.ndarray:
    vector = make_rows(i, i + 1, dim)[0]["embedding"].astype(np.float64)
    return vector / np.linalg.norm(vector)


def judge(folder: Path) -> list[str]:
    """What verify finds. Opening and every way of reading may raise ReleaseError alone, and give no odd number."""
    problems = verify(folder)
    assert all(isinstance(problem, str) and problem for problem in problems)
    try:
        release = open_release(folder)
    except ReleaseError:
        return problems
    images = [sha_of(i) for i in range(60)]
    for read in (
        lambda: [release.lookup([image])[0] for image in images],
        lambda: [release.lookup(images)[0]],
        lambda: [release.captions(image) for image in images] and [],
        lambda: [batch for batch in release.iter_batches()] and [],
        lambda: release.aliases().to_pylist() and [],
        lambda: release.subset(domain="medical") and [],
    ):
        try:
            assert all(np.isfinite(vectors).all() for vectors in read())
        except ReleaseError:
            pass
    return problems


def reseal(folder: Path, manifest: dict | None = None) -> None:
    """Make the sums right again, as an attacker or a faulty writer would."""
    manifest = manifest or json.loads((folder / "manifest.json").read_text())
    for entry in [*manifest["parts"], *manifest["files"]]:
        content = (folder / entry["file"]).read_bytes()
        entry["bytes"], entry["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_bytes(dump(manifest))


def rewrite(folder: Path, change) -> None:
    """The second part with `change(table)`, laid out as the format says where it can be, and the sums made right."""
    path = folder / "features-00001.parquet"
    plain = {"embedding.list.element": "none", "image_sha256": "zstd"}
    options = dict(compression=plain, use_dictionary=False, write_page_checksum=True, data_page_size=1 << 30)
    pq.write_table(change(pq.ParquetFile(path).read()), path, row_group_size=7, **options)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["parts"][1]["vectors"] = vector_offsets(path) or manifest["parts"][1]["vectors"]
    reseal(folder, manifest)
