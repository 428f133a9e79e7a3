"""The caption store: one directory per perspective fingerprint, append-only, safe to kill at any byte.

    caption_store/<fingerprint>/fingerprint.json                          what the fingerprint is the sha256 of
    caption_store/<fingerprint>/part-<run>-<number>-<sha256[:16]>.parquet one row per image
    caption_store/runs/<run>.json                                         provenance of a run: machine, speed, failures

A part is complete or absent (temporary file, fsync, rename) and its name carries the hash of its bytes, so a truncated
or flipped part is known at the next start. It is then set aside as `*.bad`, never deleted, and its images are redone.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from student.files import write_file
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

_PART = re.compile(r"part-(?P<run>\w+)-\d{5}-(?P<sha>[0-9a-f]{16})\.parquet")
_STALE_SECONDS = 24 * 3600


class StoreError(ValueError):
    """The store cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True)
class Part:
    """A part and the first and last image it holds (runs go by hash, so parts cover narrow ranges)."""

    path: Path
    first: str
    last: str

    @classmethod
    def of(cls, path: Path) -> "Part":
        """The part at `path`; its rows are sorted, so the ends are in the footer."""
        metadata = pq.read_metadata(path)
        column = metadata.schema.names.index("image_sha256")
        first = metadata.row_group(0).column(column).statistics.min
        return cls(path, first, metadata.row_group(metadata.num_row_groups - 1).column(column).statistics.max)


class PerspectiveStore:
    """The rows of one perspective under one fingerprint. Opening it checks every part."""

    def __init__(self, root: Path, perspective: str, identity: Mapping):
        self.perspective, self.identity = perspective, dict(identity)
        self.fingerprint = fingerprint_of(self.identity)
        self.directory = Path(root) / self.fingerprint
        self.parts: list[Part] = []
        self.set_aside: list[Path] = []
        self._written = 0
        for path in sorted(self.directory.glob("*.parquet")):
            if self._belongs(path):
                self.parts.append(Part.of(path))
            else:
                self.set_aside.append(_set_aside(path))
        # Leftovers of killed processes: a day older than what was written last, by the clock of the disk itself, so
        # that no machine whose clock is ahead deletes what another is writing. They may vanish; the disk, be read-only.
        with suppress(OSError):
            written = max((part.path.stat().st_mtime for part in self.parts), default=0)
            for leftover in self.directory.glob(".part-*.tmp"):
                if written - leftover.stat().st_mtime > _STALE_SECONDS:
                    leftover.unlink()

    def _belongs(self, path: Path) -> bool:
        """Whether `path` is a part, unchanged since it was written, and made under this fingerprint."""
        match = _PART.fullmatch(path.name)
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            # The hash in the name is no defence against a part copied here from another fingerprint's directory.
            return (
                match is not None
                and digest.startswith(match["sha"])
                and (pq.read_metadata(path).metadata or {}).get(b"fingerprint") == self.fingerprint.encode()
            )
        except FileNotFoundError:  # another process has just set it aside
            return False

    def prepare(self) -> None:
        """Make the directory and describe the fingerprint in it; raises `StoreError` where nothing can be written."""
        path = self.directory / "fingerprint.json"
        if not path.is_file():
            write_file(path, json.dumps(self.identity, indent=2, ensure_ascii=False).encode() + b"\n")

    def append(self, rows: list[Mapping], run: str, provenance: Mapping) -> Path:
        """Write `rows` as one new part; when this returns they survive a power cut. Raises `StoreError`."""
        self.prepare()
        metadata = {"fingerprint": self.fingerprint, "identity": _json(self.identity), "provenance": _json(provenance)}
        rows = sorted(rows, key=lambda row: row["image_sha256"])
        table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata(metadata))
        buffer = io.BytesIO()
        names = ["perspective", "finish_reason", "status", "run"]
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True, use_dictionary=names)
        content = buffer.getvalue()
        digest = hashlib.sha256(content).hexdigest()[:16]
        path = self.directory / f"part-{run}-{self._written:05d}-{digest}.parquet"
        write_file(path, content)
        self._written += 1
        self.parts.append(Part.of(path))
        return path

    def statuses(self, decoding: Mapping | None = None) -> dict[str, str]:
        """Status of every image held (sha256 -> the best status among its rows).

        With `decoding`, today's limits and versions, a `bad_image` of a run that had others does not count.
        """
        held: dict[str, str] = {}
        for part in self.parts:
            table = _read(part.path, ["image_sha256", "status"])
            made = json.loads((table.schema.metadata or {}).get(b"provenance", b"{}")).get("decoding")
            for sha256, status in zip(*(column.to_pylist() for column in table.columns), strict=True):
                outdated = decoding is not None and status == "bad_image" and made != decoding
                if not outdated and _at_least_as_good(status, held.get(sha256)):
                    held[sha256] = status
        return held

    def rows(self, low: str = "", high: str = "g") -> dict[str, dict]:
        """One row per image with `low <= image_sha256 < high`: the best, and among equals the latest."""
        in_range = (pc.field("image_sha256") >= low) & (pc.field("image_sha256") < high)
        best: dict[str, dict] = {}
        for part in self.parts:
            if part.last < low or part.first >= high:
                continue
            for row in _read(part.path, None, in_range).to_pylist():
                held = best.get(row["image_sha256"])
                if _at_least_as_good(row["status"], held and held["status"]):
                    best[row["image_sha256"]] = row
        return best


def open_stores(root: Path, identities: Mapping[str, Mapping]) -> dict[str, PerspectiveStore]:
    """Open (and check) the store of each perspective (name -> identity); raises `StoreError`."""
    try:
        return {name: PerspectiveStore(root, name, identity) for name, identity in identities.items()}
    except OSError as error:
        raise StoreError(f"{error.filename}: the caption store cannot be used: {error.strerror}") from error


def hash_ranges(n_images: int, images_per_range: int = 10_000) -> Iterator[tuple[str, str]]:
    """Split all sha256s into ranges `(low, high)` of about `images_per_range`, so that memory stays bounded."""
    n_ranges = max(1, -(-n_images // images_per_range))
    edges = ["", *(f"{index * 16**8 // n_ranges:08x}" for index in range(1, n_ranges)), "g"]
    return zip(edges[:-1], edges[1:], strict=True)


def _read(part: Path, columns: Iterable[str] | None, filters: pc.Expression | None = None) -> pa.Table:
    return pq.read_table(part, columns=columns, filters=filters, page_checksum_verification=True, partitioning=None)


def _at_least_as_good(status: str, other: str | None) -> bool:
    return other is None or STATUSES.index(status) <= STATUSES.index(other)


def _set_aside(path: Path) -> Path:
    target, number = path.with_name(path.name + ".bad"), 2
    while target.exists():
        target, number = path.with_name(f"{path.name}.{number}.bad"), number + 1
    try:
        path.rename(target)
    except FileNotFoundError:  # another process of this run was faster
        pass
    except OSError:  # a disk that may only be read: it counts no more than if it were away
        return path
    return target


def _json(value: Mapping) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
