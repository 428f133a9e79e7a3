"""The best row of each image, whichever parts hold it and however they lie: a part is read once on a walk over all."""

import random

import pyarrow as pa
import pytest

from pipeline.captioning.store import STATUSES, PerspectiveStore

IDENTITY = {"perspective": "content", "prompt": "What?"}


def sha256(number: int) -> str:
    return f"{number:016x}{number:048x}"  # neighbours have equal first digits, as in a crowded range


def spread(number: int) -> str:
    return f"{number:08x}{0:056x}"


@pytest.mark.parametrize("name_of", [sha256, spread])
@pytest.mark.parametrize(
    "kind",
    [
        "in order",
        "parts in any order",
        "rows in any order",
        "some twice",
        "some twice, parts in any order",
        "some lack",
    ],
)
def test_equals_a_search_through_all_rows(tmp_path, kind, name_of):
    rng = random.Random(kind)
    for attempt in range(10):
        numbers = list(range(40))
        if kind == "rows in any order":
            rng.shuffle(numbers)
        if kind.startswith("some twice"):
            numbers = sorted(numbers + rng.choices(numbers, k=5))
        if kind == "some lack":
            numbers = sorted(rng.sample(numbers, 35))
        status = {n: rng.choice(STATUSES) for n in numbers} if attempt % 2 else dict.fromkeys(numbers, "ok")
        rows = [
            {"image_sha256": name_of(n), "caption": f"{place}", "status": status[n] if place % 3 else "ok"}
            for place, n in enumerate(numbers)
        ]
        parts = [rows[start : start + 7] for start in range(0, len(rows), 7)]
        if kind.endswith("parts in any order"):
            rng.shuffle(parts)
        store = PerspectiveStore(tmp_path / f"{attempt}", "content", IDENTITY)
        for part in parts:
            store.append(part, "r", {})
        written = [row for part in parts for row in sorted(part, key=lambda row: row["image_sha256"])]
        for size in (40, 9, 1):
            for start in range(0, 40, size):
                images = [name_of(n) for n in range(start, min(start + size, 40))]
                got = store.best(pa.array(images), ["caption", "status"]).to_pylist()
                for image, row in zip(images, got, strict=True):
                    mine = [r for r in written if r["image_sha256"] == image]
                    best = min(reversed(mine), key=lambda r: STATUSES.index(r["status"]), default=None)
                    assert row == {key: best and best[key] for key in ("caption", "status")}, (image, size)


def test_a_part_that_reaches_into_several_ranges_is_read_once(tmp_path, monkeypatch):
    store = PerspectiveStore(tmp_path, "content", IDENTITY)
    for start in range(0, 60, 10):
        rows = [{"image_sha256": spread(n), "caption": f"{n}", "status": "ok"} for n in range(start, start + 10)]
        store.append(rows, "r", {})
    reads = []
    monkeypatch.setattr("pipeline.captioning.store.read", lambda place: reads.append(place) or open(place, "rb").read())
    for start in range(0, 60, 4):
        numbers = range(start, start + 4)
        found = store.best(pa.array(map(spread, numbers)), ["caption", "status"])
        assert found["caption"].to_pylist() == list(map(str, numbers))
    assert len(reads) == len(set(reads)) == 6
