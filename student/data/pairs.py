"""The usable rows of one split of the index, the caption release, and one fingerprint of all that training reads."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from shards import Release, ReleaseError, copy_release, open_release
from shards.verify import verify
from student.files import write_file
from student.places import is_remote, join, listed, read, stamp
from student.places.tars import member

TAIL_BYTES = 4096
Ranges = dict[str, tuple[float, float]]
"""File of more than 8 bits → the numbers that are black and white, the same for both images of a pair."""


_OPTIONAL = {"range": "string", "upsample": "int32"}
"""Columns that an index may lack: of version 0.1; without such inputs."""


class TrainDataError(ValueError):
    """Training data cannot be used; the message is one line and names the file and the remedy."""


@dataclass(frozen=True)
class Pairs:
    """The usable rows of one split of the index; the columns of one row are `pairs.gt_path[row]` and so on."""

    dataset: np.ndarray
    domain: np.ndarray
    task: np.ndarray
    gt_path: np.ndarray
    lq_path: np.ndarray
    """None where the input is made on the fly by `degradation`."""
    degradation: np.ndarray
    """JSON of a `DegradationSpec`, or None."""
    gt_sha256: np.ndarray
    range: np.ndarray
    """JSON of the two numbers that are black and white in both images, or None for 8 bits."""
    upsample: np.ndarray
    """How many times the lq is enlarged when it is read, or None."""

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def by_dataset(self) -> dict[str, np.ndarray]:
        """Row numbers of each dataset."""
        return {str(name): np.flatnonzero(self.dataset == name) for name in sorted(set(self.dataset))}

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """ "task" and "domain": each row's number among the sorted names."""
        columns = {"task": self.task, "domain": self.domain}
        return {pool: np.unique(column.astype(str), return_inverse=True)[1] for pool, column in columns.items()}

    @property
    def files(self) -> list[str]:
        """Every image file that training reads."""
        return sorted({*self.gt_path, *(path for path in self.lq_path if path is not None)})

    @property
    def ranges(self) -> Ranges:
        rows = [row for row, ends in enumerate(self.range) if ends]
        given = [(path, row) for row in rows for path in (self.gt_path[row], self.lq_path[row])]
        return {path: tuple(json.loads(self.range[row])) for path, row in given if path is not None}

    def describe(self, row: int) -> str:
        return f"{self.dataset[row]}: {self.lq_path[row] or self.gt_path[row]}"


def read_pairs(index: str | Path, split: str) -> Pairs:
    """The rows with status "ok" of one split, ordered by dataset and path; raises `TrainDataError`."""
    import pyarrow.compute as pc

    names = list(Pairs.__dataclass_fields__)
    try:
        table = read_index_file(index_files(index), [*names, "split", "status"])
    except FileNotFoundError:
        raise TrainDataError(f"{index}: no such index; run python -m pipeline.index (or dvc repro index)") from None
    except (OSError, ValueError) as error:
        raise TrainDataError(f"{index}: not a readable index: {' '.join(str(error).split())}") from None
    table = table.filter((pc.field("split") == split) & (pc.field("status") == "ok"))
    table = table.sort_by([(column, "ascending") for column in ("dataset", "gt_path", "lq_path")])
    pairs = Pairs(**{name: np.array(table[name].to_pylist(), dtype=object) for name in names})
    if wrong := next((name for name in pairs.by_dataset if "/" in name), None):
        raise TrainDataError(f"{index}: the data set {wrong!r} has a / in its name, which curves and panels would bear")
    return pairs


def index_files(index: str | Path) -> list[str]:
    """The parquet files of an index: it is one, or (of a large one) a folder of them by the first digits of gt_sha256.

    Raises `OSError`."""
    names = listed(index, ".parquet")
    return [str(index)] if names in ([], [os.path.basename(index)]) else [join(index, name) for name in names]


def read_index_file(files: str | Sequence[str], columns: Sequence[str]):
    """Columns of one or several files of an index as a `pyarrow.Table`, null where one of `_OPTIONAL` is not there.

    Raises `OSError` and `ValueError` (also where another column is missing).
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    tables = []
    for file in [files] if isinstance(files, str) else files:
        source = pa.BufferReader(read(file)) if is_remote(file) else file
        with parquet.ParquetFile(source, page_checksum_verification=True) as opened:
            absent = [name for name in columns if name not in opened.schema_arrow.names]
            if missing := [name for name in absent if name not in _OPTIONAL]:
                raise ValueError(f"not an index: no column {', '.join(missing)}")
            table = opened.read([name for name in columns if name not in absent])
        for name in absent:
            table = table.append_column(name, pa.nulls(len(table), _OPTIONAL[name]))
        tables.append(table.select(columns).replace_schema_metadata(None))
    return pa.concat_tables(tables)


def read_release(path: str | Path) -> Release:
    """The caption release, every byte of it verified; raises `TrainDataError` where there is none, or damage.

    That it is sound is remembered in the user's cache, by the manifest's hash and every file's inode, size and times.
    A release in an object store is copied into that cache once: a prior is looked up for every crop.
    """
    try:
        release = _nearby(open_release(path))
        known = _cache() / "verified" / release.folder.stamp
        if not known.exists():
            if problems := verify(release.folder):
                raise TrainDataError(f"{path}: {problems[0]} ({len(problems)} problems); pull or write it again")
            with contextlib.suppress(OSError):  # a read-only home: it is verified again next time
                write_file(known, release.manifest["manifest_sha256"])
        return release
    except (OSError, ReleaseError) as error:
        raise TrainDataError(f"{path}: {error}; run python -m pipeline.embed, or set train.losses.align: 0") from None


def _nearby(release: Release) -> Release:
    """The release itself, or of one in an object store the copy on this machine."""
    if not is_remote(release.path):
        return release
    import fcntl

    copy = _cache() / "releases" / release.manifest["manifest_sha256"]
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{copy}.lock", "w") as lock:  # several processes on a machine need it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            copy_release(release.path, copy)
    return open_release(copy)


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "teachonce")
    except RuntimeError:  # a user without a home: nothing is remembered
        return Path(os.devnull)


def data_fingerprint(pairs: Pairs, release: Release | None) -> str:
    """sha256 of everything that training reads: rows, clean images, inputs and priors.

    The index holds no hash of the inputs; theirs is taken from size, head and tail (the tail of a PNG holds the
    checksums of all its pixels), so that inputs which were made anew under the same names are noticed cheaply.
    """
    digest = hashlib.sha256()
    columns = (pairs.dataset, pairs.domain, pairs.task, pairs.gt_sha256, pairs.lq_path, pairs.degradation)
    with ThreadPoolExecutor(16) as threads:
        tails = threads.map(_file_key, pairs.lq_path)
        for *row, tail, ends, scale in zip(*columns, tails, pairs.range, pairs.upsample, strict=True):
            digest.update(repr([*row, tail, *filter(None, (ends, scale))]).encode())
    if release is not None:
        digest.update(repr([part["sha256"] for part in release.manifest["parts"]]).encode())
    return digest.hexdigest()


def _file_key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        if inside := member(path):
            content = inside.content()
            size, head, tail = inside.size, content[:256], content[-TAIL_BYTES:]
        elif is_remote(path):
            size = (stamp(path) or (0,))[0]
            head, tail = read(path, 0, 256), read(path, max(0, size - TAIL_BYTES))
        else:
            with open(path, "rb") as file:
                head = file.read(256)
                size = file.seek(0, 2)
                file.seek(max(0, size - TAIL_BYTES))
                tail = file.read()
        return hashlib.sha256(b"%d" % size + head + tail).hexdigest()
    except OSError as error:
        raise TrainDataError(f"{path}: {error.strerror}; run the index stage again") from None


def exchanged(sha256s: Sequence[str], seed: int) -> dict[str, str]:
    """Image → another image, one to one, at random; nobody keeps his own unless there is only one."""
    names = sorted(set(sha256s))
    circle = np.random.default_rng([seed, 1]).permutation(len(names))
    return {names[one]: names[other] for one, other in zip(circle, np.roll(circle, 1), strict=True)}
