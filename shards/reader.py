"""Open a release and look vectors and captions up by image hash, without loading it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards import manifest as manifests
from shards.half import to_float32
from shards.index import find, hex_of, words_of
from shards.schema import ALIASES, INDEX, MANIFEST, DamagedRelease, ReleaseError, UnknownImage, vector_columns


def open_release(path: str | Path, strict: bool = False) -> Release:
    """Open a release folder, or a release inside a DVC cache (its `*.dir` entry).

    Checks the manifest (sealed), that every file is there with its size, and that every part carries the manifest's
    fingerprints. `strict=True` also reads every byte once and checks it against the manifest, so that no altered
    vector can be given out; `python -m shards verify` does that and more. Raises ReleaseError (wrong path or format
    version) and DamagedRelease, both naming the file.
    """
    files = manifests.resolve(path)
    if MANIFEST not in files:
        raise ReleaseError(f"{path}: holds no {MANIFEST}; not a release")
    manifest = manifests.load(files[MANIFEST])
    _check_files(files, manifest, strict)
    return Release(path, files, manifest)


class Release:
    """Read-only view of a release, cheap to hand to DataLoader workers (forked or spawned) and to threads.

    Vectors and hashes are memory-mapped: processes share the pages, and nothing here grows with the release.
    """

    def __init__(
        self, path: str | Path, files: dict[str, Path], manifest: dict, selected: np.ndarray | None = None
    ) -> None:
        self.path, self.manifest, self._files = Path(path), manifest, files
        self.dim: int = manifest["dim"]
        self._index = np.load(files[INDEX], mmap_mode="r").view(np.ndarray)
        self._selected = selected  # sorted row numbers of a subset; None for all
        parts = manifest["parts"]
        self.vector_columns = vector_columns(manifest["apart"])
        self._starts = np.cumsum([0, *(part["rows"] for part in parts)])
        # First byte of the vectors of every row group of every part, and where each part's groups begin therein.
        self._offsets = {c: np.concatenate([part["vectors"][c] for part in parts]) for c in self.vector_columns}
        self._groups = np.cumsum([0, *(len(part["vectors"]["embedding"]) for part in parts)])
        self._vector = np.dtype((np.void, 2 * self.dim))
        self._maps: dict[int, np.ndarray] = {}
        self._captions: tuple[tuple[int, int], pa.Table] | None = None

    def __len__(self) -> int:
        return self.manifest["rows"] if self._selected is None else len(self._selected)

    def __contains__(self, sha256: str) -> bool:
        return bool(self.lookup_rows([sha256])[1][0])

    def __repr__(self) -> str:
        return f"Release({str(self.path)!r}, {len(self)} images, dim {self.dim})"

    def __reduce__(self) -> tuple:
        return _reopen, (os.path.abspath(self.path), self.manifest["manifest_sha256"], self._selected)

    def sha256s(self) -> list[str]:
        """The images' hashes, in the order of the rows."""
        return hex_of(np.ascontiguousarray(self._index[:, self._rows()].T))

    def lookup(self, sha256s: Sequence[str], column: str = "embedding") -> tuple[np.ndarray, np.ndarray]:
        """Vectors of images: n hashes → (float32 [n, dim] of unit length, found bool [n]).

        Rows of unknown images are zero and their `found` is False. `column` may name a perspective kept apart
        (`embedding_<perspective>`). Raises ReleaseError if a value is no sha256.
        """
        rows, found = self.lookup_rows(sha256s)
        if found.all():
            return to_float32(self._take(rows, column)), found
        out = np.zeros((len(rows), self.dim), np.float32)
        out[found] = to_float32(self._take(rows[found], column))
        return out, found

    def lookup_rows(self, sha256s: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of images: n hashes → (int64 [n], found bool [n]); arbitrary where not found."""
        rows, found = find(self._index, words_of(sha256s))
        if self._selected is not None:
            at = np.minimum(np.searchsorted(self._selected, rows), len(self._selected) - 1)
            found &= self._selected[at] == rows
        return rows, found

    def vectors(self, start: int = 0, stop: int | None = None, column: str = "embedding") -> np.ndarray:
        """The vectors of rows start to stop as they are stored: float16 [stop - start, dim]."""
        return self._take(self._rows()[start:stop], column)

    def captions(self, sha256: str) -> dict[str, str]:
        """Perspective → caption of one image. Raises UnknownImage (a KeyError)."""
        return {caption["perspective"]: caption["text"] for caption in self.record(sha256)["captions"]}

    def record(self, sha256: str) -> dict:
        """The row of one image without its vectors: image_sha256, width, height, captions. Raises UnknownImage."""
        rows, found = self.lookup_rows([sha256])
        if not found[0]:
            raise UnknownImage(f"{self.path}: no captions for image {sha256}")
        part = int(np.searchsorted(self._starts, rows[0], "right")) - 1
        group, row = divmod(int(rows[0] - self._starts[part]), self.manifest["group_rows"])
        held = self._captions  # one decoded row group, because neighbours are often asked for together
        if held is None or held[0] != (part, group):
            columns = ["image_sha256", "width", "height", "captions"]
            held = (part, group), self._parquet(part).read_row_group(group, columns, use_threads=False)
            self._captions = held
        return held[1].slice(row, 1).to_pylist()[0]

    def iter_batches(self, batch_size: int = 4096, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order as arrow record batches of at most batch_size rows, page checksums verified."""
        for part, start in enumerate(self._starts[:-1]):
            for batch in self._parquet(part).iter_batches(batch_size, columns=columns, use_threads=False):
                if self._selected is not None:
                    low, high = np.searchsorted(self._selected, [start, start + len(batch)])
                    chosen, start = self._selected[low:high] - start, start + len(batch)
                    batch = batch.take(pa.array(chosen))
                if len(batch):
                    yield batch

    def aliases(
        self, dataset: str | Iterable[str] | None = None, domain: str | Iterable[str] | None = None
    ) -> pa.Table:
        """Files that the images came from (path, dataset, domain, image_sha256), optionally of some sources only."""
        wanted = None
        for name, value in (("dataset", dataset), ("domain", domain)):
            if value is not None:
                one = pc.field(name).isin([value] if isinstance(value, str) else list(value))
                wanted = one if wanted is None else wanted & one
        table = pq.read_table(
            self._files[ALIASES], filters=wanted, page_checksum_verification=True, use_threads=False, partitioning=None
        )
        if self._selected is None or not len(table):
            return table
        return table.filter(pa.array(self.lookup_rows(table["image_sha256"])[1]))

    def subset(self, dataset: str | Iterable[str] | None = None, domain: str | Iterable[str] | None = None) -> Release:
        """The same release, restricted to the images of some data sets and domains (several: any of them).

        Raises ReleaseError when nothing matches, naming what there is.
        """
        images = pc.unique(self.aliases(dataset, domain)["image_sha256"])
        if not len(images):
            known = sorted({(s["domain"], s["dataset"]) for s in self.manifest["stats"]["sources"]})
            raise ReleaseError(f"{self.path}: no image of dataset={dataset!r}, domain={domain!r}; there are {known}")
        rows, _ = self.lookup_rows(images)
        return Release(self.path, self._files, self.manifest, np.sort(rows))

    def _rows(self) -> np.ndarray:
        return np.arange(self.manifest["rows"]) if self._selected is None else self._selected

    def _take(self, rows: np.ndarray, column: str) -> np.ndarray:
        """Rows int [n] → stored vectors float16 [n, dim]."""
        if column not in self.vector_columns:
            raise ReleaseError(f"{self.path}: no column {column!r}; there are {self.vector_columns}")
        parts = np.searchsorted(self._starts, rows, "right") - 1
        groups, within = np.divmod(rows - self._starts[parts], self.manifest["group_rows"])
        first_bytes = self._offsets[column][self._groups[parts] + groups] + within * (2 * self.dim)
        out = np.empty(len(rows), self._vector)
        for part in set(parts.tolist()):
            mine = np.flatnonzero(parts == part)
            out[mine] = self._map(part)[first_bytes[mine]]
        return out.view(np.float16).reshape(len(rows), self.dim)

    def _map(self, part: int) -> np.ndarray:
        """The part's bytes as overlapping windows: element i is the vector that begins at byte i."""
        if part not in self._maps:
            whole = np.memmap(self._files[self.manifest["parts"][part]["file"]], np.uint8, "r").view(np.ndarray)
            windows = len(whole) - 2 * self.dim + 1
            self._maps[part] = np.ndarray((windows,), self._vector, whole, strides=(1,))
        return self._maps[part]

    def _parquet(self, part: int) -> pq.ParquetFile:
        # Opened anew each time: a file position shared by forked workers would mix their reads.
        file = self._files[self.manifest["parts"][part]["file"]]
        return pq.ParquetFile(file, memory_map=True, page_checksum_verification=True)


def _reopen(path: str, manifest_sha256: str, selected: np.ndarray | None) -> Release:
    """What a spawned worker does with a pickled Release; the bytes were judged where it was opened first."""
    files = manifests.resolve(path)
    manifest = manifests.load(files[MANIFEST])
    if manifest["manifest_sha256"] != manifest_sha256:
        raise ReleaseError(f"{path}: another release took its place since it was opened; open it again")
    return Release(path, files, manifest, selected)


def _check_files(files: dict[str, Path], manifest: dict, strict: bool) -> None:
    listed = [*manifest["parts"], *manifest["files"]]
    for entry in listed:
        name = entry["file"]
        if name not in files or not files[name].is_file():
            raise DamagedRelease(f"{name}: missing, although the manifest names it; pull the release again")
        size = files[name].stat().st_size
        if size != entry["bytes"]:
            raise DamagedRelease(f"{files[name]}: {size} bytes instead of {entry['bytes']}; pull the release again")
    if strict:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            sums = pool.map(lambda entry: manifests.file_sha256(files[entry["file"]]), listed)
            for entry, found in zip(listed, sums, strict=True):
                if found != entry["sha256"]:
                    raise DamagedRelease(f"{files[entry['file']]}: altered (sha256 {found}); pull the release again")
    for part in manifest["parts"]:
        check_footer(files[part["file"]], manifest)


def check_footer(path: Path, manifest: dict) -> None:
    """Raises DamagedRelease if a parquet file cannot be read or was written for another release."""
    try:
        footer = pq.read_metadata(path).metadata or {}
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: names that are not UTF-8
        raise DamagedRelease(f"{path}: not a readable parquet file ({error}); pull the release again") from None
    for key in ("teacher_fingerprint", "embedding_fingerprint"):
        found = footer.get(f"teachonce.{key}".encode(), b"").decode(errors="replace")
        if found != manifest[key]:
            raise DamagedRelease(
                f"{path}: {key} {found[:12]!r}, the manifest says {manifest[key][:12]!r}; mixed releases"
            )
