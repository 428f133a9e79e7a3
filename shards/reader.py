"""Open a release and look vectors and captions up by image hash, without loading it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.arrays import find, hex_of, parse_index, to_float32, words_of
from shards.folder import Folder, open_folder
from shards.remote import RemoteFile
from shards.schema import ALIASES, INDEX, DamagedRelease, ReleaseError, UnknownImage, vector_columns
from shards.verify import check_aliases, check_files, check_part, damage, parquet_of

_FEW = 3  # so many hashes are quicker to look up one by one


def open_release(path: str | Path, strict: bool = False, filesystem: Any = None) -> Release:
    """Open a release folder, a release inside a DVC cache (its `*.dir` entry), or one at an address such as
    `s3://bucket/folder`.

    At an address, by pyarrow or by a `filesystem` of fsspec or pyarrow, the index (32 bytes an image) is read now, and
    all else in parts when it is asked for: to train, copy it (`shards.copy_release`). If it is replaced meanwhile,
    reading raises ReleaseError. A folder:

    Every file is opened here and nothing is read by path afterwards: a release that is replaced while it is open goes
    on giving what it held. Checks the manifest (sealed), that every file is there with its size, and that every part
    is laid out as the manifest says and carries its fingerprints. `strict=True` also reads every byte once and
    compares its sha256, so that no altered vector can be given out; `python -m shards verify` does that and more.
    Raises ReleaseError (wrong path or format version) and DamagedRelease, both naming the file.
    """
    folder = open_folder(path, filesystem)
    check_files(folder, strict)
    for part in folder.manifest["parts"]:
        check_part(folder, part)
    check_aliases(folder)
    folder.check()
    release, ends = Release(folder), []
    for part, row in zip(folder.manifest["parts"], release._starts, strict=False):
        ends.append(hex_of(release._index[:, [row, row + part["rows"] - 1]].T) == [part["first"], part["last"]])
    if not all(ends):
        raise DamagedRelease(f"{path}/{INDEX}: of another release than its manifest; pull the release again")
    return release


class Release:
    """Read-only view of a release, cheap to hand to DataLoader workers (forked or spawned) and to threads.

    Vectors and hashes are memory-mapped: processes share the pages, and nothing here grows with the release.
    """

    def __init__(self, folder: Folder, selected: np.ndarray | None = None) -> None:
        self.folder, self.path, self.manifest = folder, folder.path, folder.manifest
        self.dim: int = self.manifest["dim"]
        self._index = parse_index(folder.files[INDEX], self.manifest["rows"])
        self._selected = selected  # sorted row numbers of a subset; None for all
        parts = self.manifest["parts"]
        self.vector_columns = vector_columns(self.manifest["apart"])
        self._starts = np.cumsum([0, *(part["rows"] for part in parts)])
        # First byte of the vectors of every row group of every part, and where each part's groups begin therein.
        self._offsets = {c: np.concatenate([part["vectors"][c] for part in parts]) for c in self.vector_columns}
        self._groups = np.cumsum([0, *(len(part["vectors"]["embedding"]) for part in parts)])
        self._vector = np.dtype((np.void, 2 * self.dim))
        self._starts_list, self._groups_list = self._starts.tolist(), self._groups.tolist()
        self._files_list = [folder.files[part["file"]] for part in parts]
        self._few = 0 if any(isinstance(file, RemoteFile) for file in self._files_list) else _FEW
        self._captions: tuple[tuple[int, int], pa.Table] | None = None

    def __len__(self) -> int:
        return self.manifest["rows"] if self._selected is None else len(self._selected)

    def __contains__(self, sha256: str) -> bool:
        return bool(self.lookup_rows([sha256])[1][0])

    def __repr__(self) -> str:
        return f"Release({str(self.path)!r}, {len(self)} images, dim {self.dim})"

    def __reduce__(self) -> tuple:
        return _reopen, (self.folder.place, self.manifest["manifest_sha256"], self._selected, self.folder.filesystem)

    def sha256s(self, rows: np.ndarray | slice = slice(None)) -> list[str]:
        """The images' hashes, in the order of the rows: of all, or of some (their numbers, or a slice)."""
        if self._selected is not None:
            rows = self._selected[rows]
        return hex_of(self._index[:, rows].T)

    def lookup(self, sha256s: Sequence[str], column: str = "embedding") -> tuple[np.ndarray, np.ndarray]:
        """Vectors of images: n hashes → (float32 [n, dim] of unit length, found bool [n]).

        Rows of unknown images are zero and their `found` is False. `column` may name a perspective kept apart
        (`embedding_<perspective>`). Raises ReleaseError if a value is no sha256, and DamagedRelease
        if a vector is not finite.
        """
        if len(sha256s) <= self._few and self._selected is None and column in self._offsets:
            return self._lookup_few(words_of(sha256s), column)
        rows, found = self.lookup_rows(sha256s)
        if found.all():
            return self._floats(rows, column), found
        out = np.zeros((len(rows), self.dim), np.float32)
        out[found] = self._floats(rows[found], column)
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
            with damage(self._part_name(part), self.folder):
                held = (part, group), self._parquet(part).read_row_group(group, columns, use_threads=False)
            self.folder.check()
            self._captions = held
        with damage(self._part_name(part), self.folder):  # text that is not UTF-8
            found = held[1].slice(row, 1).to_pylist()[0]
        if found["image_sha256"] != sha256.lower():
            raise DamagedRelease(f"{self._part_name(part)}: row {row} of group {group} is not image {sha256}")
        return found

    def iter_batches(self, batch_size: int = 4096, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order as arrow record batches of at most batch_size rows, page checksums verified."""
        for part, start in enumerate(self._starts[:-1]):
            for batch in self._batches(part, batch_size, columns):
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
        with damage(ALIASES, self.folder):
            table = parquet_of(self.folder, ALIASES).read(use_threads=False)
        self.folder.check()
        table = table.replace_schema_metadata(None) if wanted is None else table.filter(wanted)
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
        return Release(self.folder, np.sort(rows))

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
            mine, file = np.flatnonzero(parts == part), self._files_list[part]
            if isinstance(file, RemoteFile):
                with damage(file.path, self.folder):
                    out[mine] = file.gather(first_bytes[mine], 2 * self.dim)
            else:  # its bytes as overlapping windows: element i is the vector that begins at byte i
                windows = np.ndarray((len(file) - 2 * self.dim + 1,), self._vector, file, strides=(1,))
                out[mine] = windows[first_bytes[mine]]
        self.folder.check()
        return out.view(np.float16).reshape(len(rows), self.dim)

    def _floats(self, rows: np.ndarray, column: str) -> np.ndarray:
        with damage(f"{self.path}: {column}"):
            return to_float32(self._take(rows, column))

    def _lookup_few(self, words: np.ndarray, column: str) -> tuple[np.ndarray, np.ndarray]:
        """`lookup` without numpy's fixed cost for each of a dozen steps: three times as fast for one hash."""
        out, found = np.zeros((len(words), self.dim), np.float32), np.zeros(len(words), bool)
        for i, word in enumerate(words):
            row = int(self._index[0].searchsorted(word[0]))
            if row == self._index.shape[1] or (self._index[:, row] != word).any():
                rows, there = find(self._index, word[None])  # not there, or behind one with the same beginning
                if not there[0]:
                    continue
                row = int(rows[0])
            part = bisect_right(self._starts_list, row) - 1
            group, within = divmod(row - self._starts_list[part], self.manifest["group_rows"])
            at = int(self._offsets[column][self._groups_list[part] + group]) + within * 2 * self.dim
            out[i] = self._files_list[part][at : at + 2 * self.dim].view(np.float16)
            if not np.isfinite(out[i]).all():
                raise DamagedRelease(f"{self._part_name(part)}: the {column} of row {row} is not finite")
            found[i] = True
        return out, found

    def _part_name(self, part: int) -> str:
        return self.manifest["parts"][part]["file"]

    def _parquet(self, part: int) -> pq.ParquetFile:
        return parquet_of(self.folder, self._part_name(part))

    def _batches(self, part: int, batch_size: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        with damage(self._part_name(part), self.folder):
            for batch in self._parquet(part).iter_batches(batch_size, columns=columns, use_threads=False):
                self.folder.check()
                yield batch


def _reopen(path: str, manifest_sha256: str, selected: np.ndarray | None, filesystem: Any = None) -> Release:
    """What a spawned worker does with a pickled Release; the bytes were judged where it was opened first."""
    folder = open_folder(path, filesystem)
    if folder.manifest["manifest_sha256"] != manifest_sha256:
        raise ReleaseError(f"{path}: another release took its place since it was opened; open it again")
    check_files(folder, strict=False)
    return Release(folder, selected)
