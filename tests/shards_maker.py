"""Small releases for the tests of the shards room: deterministic rows, and a handful of sources."""

import hashlib

import numpy as np

from shards import write_release

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
