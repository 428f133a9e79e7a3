"""The caption store: one directory per perspective fingerprint, append-only, safe to kill at any byte.

    caption_store/<fingerprint>/fingerprint.json                 what the fingerprint is the sha256 of
    caption_store/<fingerprint>/part-<first>-<last>-<run>-<number>-<sha256[:16]>.parquet     one row per image
    caption_store/runs/<run>.json                                provenance of a run: machine, speed, failures

A part's name says which images it may hold (eight digits of the first and the last sha256), so that opening a store
is one listing, and a range of images is read from the parts that touch it. A part is complete or absent, and its name
carries the hash of its bytes: what is truncated or flipped is known when it is read. It is then set aside as `*.bad`,
never deleted, and its images are redone. The store may be an address (`student.places`).
"""

import fcntl
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from student.places import exists, is_remote, join, listed, read, remove, write_whole
from teacher.identity import fingerprint as fingerprint_of

SCHEMA = pa.schema(
    [
        ("image_sha256", pa.string()),
        ("perspective", pa.string()),
        ("caption", pa.string()),
        ("n_tokens", pa.int32()),
        ("finish_reason", pa.string()),  # stop | length; null without a caption
        ("status", pa.string()),
        ("error", pa.string()),
        # From here on provenance: may differ between two runs that made equal captions.
        ("path", pa.string()),
        ("run", pa.string()),
        ("batch_images", pa.int32()),  # in bf16, greedy tokens can change with the composition of the batch
    ]
)
STATUSES = ("ok", "empty", "bad_image", "error")
"""Best first: `bad_image` blames the file's content, `error` anything that another attempt may survive."""

_PART = re.compile(r"part-(?:([0-9a-f]{8})-([0-9a-f]{8})-)?(\w+-\d{5})-([0-9a-f]{16})\.parquet")
_STALE_SECONDS = 24 * 3600


class StoreError(ValueError):
    """The store cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Part:
    """A part's name, the beginnings of the first and last sha256 it holds, when it was written, and its hash."""

    name: str
    first: str
    last: str
    written: str
    "run and number: later ones sort last"
    digest: str


class PerspectiveStore:
    """The rows of one perspective under one fingerprint."""

    def __init__(self, root: str | Path, perspective: str, identity: Mapping):
        self.perspective, self.identity = perspective, dict(identity)
        self.fingerprint = fingerprint_of(self.identity)
        self.directory = join(root, self.fingerprint)
        self.parts: list[Part] = []
        "in the order in which they were written"
        self.set_aside: list[str] = []
        self._held: dict[tuple[str, ...], pa.Table] = {}  # what reaches into the next range of images
        self._number = 0
        for name in listed(self.directory, ".parquet"):
            if name.startswith("."):  # being written
                continue
            if match := _PART.fullmatch(name):
                first, last, written, digest = match.groups()
                part = Part(name, first, last, written, digest)
                # Of a name without range (version 0.1) only the content tells.
                self.parts += [part] if first else self._with_range(part)
            else:
                self._set_aside(name)
        self.parts.sort(key=lambda part: part.written)
        if not is_remote(self.directory):
            self._remove_leftovers()

    def prepare(self) -> None:
        """Make the directory and describe the fingerprint in it; raises `StoreError` where nothing can be written."""
        path = join(self.directory, "fingerprint.json")
        if not exists(path):
            write_whole(path, json.dumps(self.identity, indent=2, ensure_ascii=False) + "\n")

    def append(self, rows: list[Mapping], run: str, provenance: Mapping) -> str:
        """Write `rows` as one new part; when this returns they survive a power cut. Returns its place."""
        self.prepare()
        metadata = {"fingerprint": self.fingerprint, "identity": _json(self.identity), "provenance": _json(provenance)}
        rows = sorted(rows, key=lambda row: row["image_sha256"])
        table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
        buffer = io.BytesIO()
        names = ["perspective", "finish_reason", "status", "run"]
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, use_dictionary=names)
        content = buffer.getvalue()
        first, last, written = rows[0]["image_sha256"][:8], rows[-1]["image_sha256"][:8], f"{run}-{self._number:05d}"
        digest = hashlib.sha256(content).hexdigest()[:16]
        part = Part(f"part-{first}-{last}-{written}-{digest}.parquet", first, last, written, digest)
        place = join(self.directory, part.name)
        write_whole(place, content)
        self._number += 1
        self.parts.append(part)
        return place

    def best(self, images: pa.StringArray, columns: list[str], decoding: Mapping | None = None) -> pa.Table:
        """One row for each of `images` (sha256, ascending, each once): the best status, among equals the latest.

        Rows of nulls where the store holds none. `status` is among the columns. With `decoding`, today's limits and
        versions, a `bad_image` of a run that had others does not count.
        """
        low, high, columns = images[0].as_py()[:8], images[-1].as_py()[:8], ["image_sha256", *columns]
        parts = [part for part in self.parts if part.first <= high and part.last >= low]
        by_image = sorted(parts, key=lambda part: part.first)
        if apart := all(one.last < other.first for one, other in pairwise(by_image)):
            parts = by_image  # when they were written says nothing then
        found = [*zip(parts, self._read_all(parts, columns), strict=True)]
        self._held = {(part.name, *columns): table for part, table in found if table and part.last >= high}
        tables = [SCHEMA.empty_table().select(columns)]
        for table in (table for _, table in found if table):
            made_with = _decoding((table.schema.metadata or {}).get(b"provenance", b"{}"))
            if decoding not in (None, made_with) and pc.index(table["status"], "bad_image").as_py() >= 0:
                table = table.filter(pc.not_equal(table["status"], "bad_image"))
            tables.append(table.replace_schema_metadata(None))
        rows = pa.concat_tables(tables)
        if apart:  # as a rule they hold these very images, each once, and nothing need be looked up
            begin = max(pc.index(rows["image_sha256"], images[0]).as_py(), 0)
            mine, after = rows.slice(begin, len(images)), rows["image_sha256"].slice(begin + len(images), 1)
            if mine["image_sha256"].equals(pa.chunked_array([images])) and after.to_pylist() != [images[-1].as_py()]:
                return mine.select(columns[1:]).combine_chunks()
        number = pc.fill_null(pc.index_in(rows["image_sha256"], images), -1).to_numpy()
        mine = np.flatnonzero(number >= 0)  # the others' images are not asked for
        rank = pc.index_in(rows["status"], pa.array(STATUSES)).to_numpy()[mine].astype(np.int64)
        # The smallest key is the best: first the status, then how late it was written.
        none, last = np.iinfo(np.int64).max, len(rows) - 1
        best = np.full(len(images), none)
        np.minimum.at(best, number[mine], rank * len(rows) + last - mine)
        absent = best == none
        chosen = np.where(absent, 0, last - best % max(len(rows), 1))
        return rows.select(columns[1:]).take(pa.array(chosen, mask=absent)).combine_chunks()

    def _read_all(self, parts: list[Part], columns: list[str]) -> list[pa.Table | None]:
        if not is_remote(self.directory):
            return [self._read(part, columns) for part in parts]
        with ThreadPoolExecutor(16) as threads:  # what takes its time is the way there and back
            return list(threads.map(self._read, parts, repeat(columns)))

    def _read(self, part: Part, columns: list[str]) -> pa.Table | None:
        """The rows of a part, unless it is damaged or made under another fingerprint: then it is set aside."""
        if (part.name, *columns) in self._held:
            return self._held[part.name, *columns]
        try:
            content = read(join(self.directory, part.name))
        except FileNotFoundError:  # another process has just set it aside
            content = None
        # The hash is no defence against a part copied here from another fingerprint's directory.
        if content and hashlib.sha256(content).hexdigest()[:16] == part.digest:
            file = pq.ParquetFile(pa.BufferReader(content))
            if (file.metadata.metadata or {}).get(b"fingerprint") == self.fingerprint.encode():
                return file.read(columns, use_threads=False)
        self.parts = [other for other in self.parts if other.name != part.name]
        if content is not None:
            self._set_aside(part.name)
        return None

    def _with_range(self, part: Part) -> list[Part]:
        table = self._read(part, ["image_sha256"])
        if table is None:
            return []
        images = table["image_sha256"]
        return [replace(part, first=images[0].as_py()[:8], last=images[-1].as_py()[:8])]

    def _set_aside(self, name: str) -> None:
        path, number = join(self.directory, name), 2
        target = f"{path}.bad"
        while exists(target):
            target, number = f"{path}.{number}.bad", number + 1
        try:
            if is_remote(path):
                write_whole(target, read(path))
                remove(path)
            else:
                Path(path).rename(target)
        except FileNotFoundError:  # another process of this run was faster
            pass
        except OSError:  # a disk that may only be read: it counts no more than if it were away
            target = path
        self.set_aside.append(target)

    def _remove_leftovers(self) -> None:
        """Leftovers of killed processes: a day older than what was written last, by the clock of the disk itself, so
        that no machine whose clock is ahead deletes what another is writing. They may vanish; the disk, be read-only.
        """
        folder = Path(self.directory)
        with suppress(OSError):
            leftovers = list(folder.glob(".part-*.tmp"))
            written = max((folder.joinpath(p.name).stat().st_mtime for p in self.parts if leftovers), default=0)
            for leftover in leftovers:
                if written - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()


def open_stores(root: str | Path, identities: Mapping[str, Mapping]) -> dict[str, PerspectiveStore]:
    """Open the store of each perspective (name -> identity); raises `StoreError`."""
    try:
        return {name: PerspectiveStore(root, name, identity) for name, identity in identities.items()}
    except OSError as error:
        raise StoreError(
            f"{error.filename or root}: the caption store cannot be used: {error.strerror or error}"
        ) from error


@contextmanager
def alone(root: str | Path) -> Iterator[None]:
    """Inside, no other process captions into a store on this machine's disks: it would do all the work again.

    The kernel ends it with the process, however that ends. A disk that knows no locks gives none. Raises `StoreError`.
    """
    with ExitStack() as held:
        if not is_remote(root):
            with suppress(OSError):
                os.makedirs(root, exist_ok=True)
                folder = os.open(root, os.O_RDONLY)
                held.callback(os.close, folder)
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    remedy = "wait for it; several GPUs share one run with --ray"
                    raise StoreError(f"{root}: another process captions into it; {remedy}") from None
        yield


@lru_cache(64)
def _decoding(provenance: bytes) -> Mapping | None:  # the same for all parts of a run
    return json.loads(provenance).get("decoding")


def _json(value: Mapping) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
