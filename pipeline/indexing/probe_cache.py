"""Looking into many image files: in several processes, and only once per (path, size, mtime)."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.indexing.probe import Probe, probe, probe_chunk
from student.files import publish

WINDOW = 8192
"""Files in flight at once: what bounds the memory."""
FEW = 512
"""Up to so many new files are looked at by threads of this process: starting others takes longer."""
CHUNK = 32
MERGE = 65536

SCHEMA = pa.schema(
    [("key", pa.uint64()), ("sha256", pa.binary(32)), ("width", pa.int32()), ("height", pa.int32())]
    + [("mode", pa.dictionary(pa.int32(), pa.string())), ("low", pa.float64()), ("high", pa.float64())]
)
_ROW = np.dtype(
    [("key", "u8"), ("sha256", "V32"), ("width", "i4"), ("height", "i4"), ("mode", "i4"), ("low", "f8"), ("high", "f8")]
)


class ProbeCache:
    """Good images of earlier runs, 76 bytes each in memory, in one parquet file that is replaced as a whole.

    The key is 64 bits of a hash over path, size and mtime. A damaged cache is started anew: it is only a cache. What
    is wrong with a bad file is never remembered.
    """

    def __init__(self, file: Path):
        self.file = file
        self._modes: list[str] = []
        self._keep(np.empty(0, _ROW))
        self._fresh: dict[int, tuple] = {}
        self._saved = True
        try:
            table = pq.read_table(file, schema=SCHEMA, page_checksum_verification=True, partitioning=None)
        except (OSError, pa.ArrowException):
            return
        mode = table["mode"].combine_chunks()
        self._modes = mode.dictionary.to_pylist()
        rows = np.empty(table.num_rows, _ROW)
        for name in ("key", "width", "height", "low", "high"):
            rows[name] = table[name].to_numpy()
        rows["mode"] = mode.indices.to_numpy()
        data = b"".join(chunk.buffers()[1][chunk.offset * 32 :][: len(chunk) * 32] for chunk in table["sha256"].chunks)
        rows["sha256"] = np.frombuffer(data, "V32")
        self._keep(rows)

    def _keep(self, rows: np.ndarray) -> None:
        self._rows = rows
        self._keys = np.ascontiguousarray(rows["key"])  # a search in a strided column would copy it each time

    def get(self, key: int) -> Probe | None:
        """The good image with this key."""
        row = self._fresh.get(key)
        if row is None:
            at = int(np.searchsorted(self._keys, np.uint64(key)))
            if at == len(self._keys) or self._keys[at] != key:
                return None
            row = self._rows[at].tolist()
        return Probe(bytes(row[1]).hex(), row[2], row[3], self._modes[row[4]], None, *row[5:])

    def put(self, key: int, found: Probe) -> None:
        """Remember a good image."""
        if found.mode not in self._modes:
            self._modes.append(found.mode)
        mode = self._modes.index(found.mode)
        self._fresh[key] = (key, bytes.fromhex(found.sha256), found.width, found.height, mode, found.low, found.high)
        self._saved = False
        if len(self._fresh) >= MERGE:
            self._merge()

    def _merge(self) -> None:
        fresh = np.array(list(self._fresh.values()), _ROW)
        rows = np.concatenate([self._rows, fresh])
        self._keep(rows[np.unique(rows["key"], return_index=True)[1]])
        self._fresh = {}

    def save(self) -> None:
        """Write the cache file, if there is anything new."""
        if self._saved:
            return
        self._merge()
        rows = self._rows
        sha256 = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), len(rows), [None, pa.py_buffer(rows["sha256"].tobytes())]
        )
        mode = pa.DictionaryArray.from_arrays(pa.array(rows["mode"]), pa.array(self._modes, pa.string()))
        columns = [pa.array(rows["key"]), sha256, pa.array(rows["width"]), pa.array(rows["height"]), mode]
        columns += [pa.array(rows[name]) for name in ("low", "high")]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f".{self.file.name}.{os.getpid()}.tmp")
        try:
            table = pa.Table.from_arrays(columns, schema=SCHEMA)
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
            publish(temporary, self.file)
        finally:
            temporary.unlink(missing_ok=True)
        self._saved = True


def file_key(path: str) -> int:
    """64 bits of a hash over path, size and mtime; raises OSError."""
    stat = os.stat(path)
    text = f"{stat.st_size} {stat.st_mtime_ns} {path}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def probe_all(paths: Iterable[str], cache: ProbeCache, workers: int, max_pixels: int) -> Iterator[Probe]:
    """Probe files in order, at most WINDOW ahead of the consumer. Raises OSError if a worker process dies."""
    paths, workers, processes = iter(paths), workers or os.cpu_count() or 1, None
    with ThreadPoolExecutor(max(8, workers)) as threads, ExitStack() as stack:
        while window := list(islice(paths, WINDOW)):
            parts = [window[start : start + CHUNK] for start in range(0, len(window), CHUNK)]
            keys = [key for part in threads.map(_keys, parts) for key in part]
            found = [None if key is None else cache.get(key) for key in keys]
            # An image that is too large under today's max_pixels is looked at again, which refuses it.
            todo = [i for i, known in enumerate(found) if known is None or known.width * known.height > max_pixels]
            new = [window[i] for i in todo]
            if len(new) > FEW and workers > 1:
                if processes is None:
                    context = get_context("spawn")  # threads run here, so forking is no option
                    processes = stack.enter_context(ProcessPoolExecutor(workers, context))
                probes = _in_processes(processes, new, max_pixels)
            else:
                probes = threads.map(lambda path: probe(path, max_pixels), new)
            for i, fresh in zip(todo, probes, strict=True):
                found[i] = fresh
                if fresh.error is None and keys[i] is not None:
                    cache.put(keys[i], fresh)
            yield from found


def _in_processes(processes: ProcessPoolExecutor, paths: list[str], max_pixels: int) -> Iterator[Probe]:
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    running = [processes.submit(probe_chunk, chunk, max_pixels) for chunk in chunks]
    for chunk, result in zip(chunks, running, strict=True):
        try:
            yield from result.result()
        except BrokenProcessPool:
            where = f"somewhere from {chunk[0]} on"
            raise OSError(f"a decoding process died {where}; if memory ran out, set index.workers lower") from None


def _keys(paths: list[str]) -> list[int | None]:
    """`file_key` of each, None where there is no such file."""
    keys: list[int | None] = []
    for path in paths:
        try:
            keys.append(file_key(path))
        except OSError:
            keys.append(None)
    return keys
