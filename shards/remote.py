"""A release in an object store (`s3://bucket/folder`, or any file system of pyarrow or fsspec): read by ranges, and
published with its manifest last."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from shards.schema import BYSTANDERS, MANIFEST, RELEASE_NAMES, DamagedRelease, NoRelease, ReleaseError

CHUNK = 8 << 20
_NEAR = 64 << 10  # to read over such a gap is quicker than to ask again
_AT_ONCE = 16


def is_address(place: object) -> bool:
    return isinstance(place, str) and "://" in place


def file_system(address: str, given: Any = None) -> tuple[fs.FileSystem, str]:
    """pyarrow's file system of an address and the path therein; `given`: one of pyarrow's or fsspec's to use instead.

    Raises ReleaseError."""
    with asking(address):
        if given is None:
            files, path = fs.FileSystem.from_uri(address)
        else:
            files = given if isinstance(given, fs.FileSystem) else fs.PyFileSystem(fs.FSSpecHandler(given))
            path = address.partition("://")[2] or address
    return files, path.rstrip("/")


@contextmanager
def asking(address: str) -> Iterator[None]:
    """What a store or its library says becomes a NoRelease of one line."""
    try:
        yield
    except ReleaseError:
        raise
    except Exception as error:  # of any library
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        remedy = "are AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and the address right?"
        if isinstance(error, pa.ArrowInvalid | NotImplementedError):
            remedy = "pyarrow does not know such addresses: pass open_release(..., filesystem=fsspec.filesystem(...))"
        raise NoRelease(f"{address}: {reason}; {remedy}") from error


class RemoteFile:
    """One object, as readers use the bytes of a mapped file: its length and slices of it, each by one request."""

    def __init__(self, files: fs.FileSystem, path: str, size: int) -> None:
        self.files, self.path, self.size = files, path, size
        self._footer: pq.FileMetaData | None = None

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> np.ndarray:
        """uint8 [bytes]; raises DamagedRelease where the object is gone or shorter."""
        start, stop, _ = part.indices(self.size)
        try:
            with self.files.open_input_file(self.path) as file:
                content = file.read_at(max(stop - start, 0), start)
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise DamagedRelease(f"{self.path}: cannot be read ({reason}); open the release again") from error
        if len(content) != max(stop - start, 0):
            raise DamagedRelease(f"{self.path}: {len(content)} bytes instead of {stop - start} at {start}")
        return np.frombuffer(content, np.uint8)

    def tobytes(self) -> bytes:
        return self[:].tobytes()

    def chunks(self) -> Iterator[np.ndarray]:
        return (self[start : start + CHUNK] for start in range(0, self.size, CHUNK))

    def gather(self, first_bytes: np.ndarray, width: int) -> np.ndarray:
        """The `width` bytes from each of `first_bytes` [n] on: void [n]; what lies near each other in one request."""
        order = np.argsort(first_bytes, kind="stable")
        at = first_bytes[order]
        ends = np.flatnonzero((np.diff(at) > _NEAR + width) | (np.diff((at - at[0]) // CHUNK) > 0)) + 1
        out = np.empty(len(at), np.dtype((np.void, width)))

        def fetch(rows: np.ndarray) -> None:
            low = int(at[rows[0]])
            content = self[low : int(at[rows[-1]]) + width]
            out[order[rows]] = np.ndarray((len(content) - width + 1,), out.dtype, content, strides=(1,))[at[rows] - low]

        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(fetch, np.split(np.arange(len(at)), ends)))
        return out

    def parquet(self) -> pq.ParquetFile:
        source = self.files.open_input_file(self.path)
        opened = pq.ParquetFile(source, metadata=self._footer, page_checksum_verification=True)
        self._footer = opened.metadata
        return opened


def names_in(files: fs.FileSystem, path: str) -> dict[str, fs.FileInfo]:
    """Name → facts of the objects in a folder; none where there is no folder."""
    found = files.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return {info.base_name: info for info in found if info.type == fs.FileType.File and info.base_name}


def open_files(address: str, given: Any) -> tuple[dict[str, RemoteFile], list[str], tuple[fs.FileSystem, str]]:
    """The release's objects, names of others in the folder, and where it is. Raises ReleaseError."""
    files, path = file_system(address, given)
    with asking(address):
        infos = names_in(files, path)
    if not infos:
        raise NoRelease(f"{address}: no such release; give the address of its folder")
    known = {
        name: RemoteFile(files, info.path, info.size) for name, info in infos.items() if RELEASE_NAMES.fullmatch(name)
    }
    return known, sorted(name for name in infos if name not in known and not BYSTANDERS.fullmatch(name)), (files, path)


@contextmanager
def staged_remote(address: str) -> Iterator[Path]:
    """Yield a fresh local folder; when the block ends well, its files take the place of the release at `address`.

    The old manifest goes first and the new one comes last, so that whoever opens the release meanwhile, or after a
    crash, finds the old one, the new one or none, and who has it open notices (`Folder.check`).
    """
    files, path = file_system(address)
    with asking(address):
        _refuse_foreign(files, path, address)
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        yield Path(folder)
        with asking(address):
            there, fresh = _refuse_foreign(files, path, address), sorted(Path(folder).iterdir())
            if MANIFEST in there:
                files.delete_file(f"{path}/{MANIFEST}")
            files.create_dir(path, recursive=True)
            for file in fresh:
                if file.name != MANIFEST:
                    with open(file, "rb") as source, files.open_output_stream(f"{path}/{file.name}") as sink:
                        while chunk := source.read(CHUNK):
                            sink.write(chunk)
            for name in there.keys() - {file.name for file in fresh} - {MANIFEST}:
                if RELEASE_NAMES.fullmatch(name):
                    files.delete_file(f"{path}/{name}")
            with files.open_output_stream(f"{path}/{MANIFEST}") as sink:
                sink.write((Path(folder) / MANIFEST).read_bytes())


def _refuse_foreign(files: fs.FileSystem, path: str, address: str) -> dict[str, fs.FileInfo]:
    there = names_in(files, path)
    for name in sorted(there):
        if not (RELEASE_NAMES.fullmatch(name) or BYSTANDERS.fullmatch(name)):
            raise ReleaseError(f"{address}: holds {name!r}, which is no part of a release; choose another folder")
    return there


def sha256_of(file: np.ndarray | RemoteFile) -> str:
    digest = hashlib.sha256()
    for chunk in file.chunks() if isinstance(file, RemoteFile) else (file,):
        digest.update(chunk)
    return digest.hexdigest()
