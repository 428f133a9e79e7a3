"""index.npy: the sorted image hashes as numbers, so that a lookup is a binary search in mapped memory.

uint64 [4, rows]: row 0 holds the leading 64 bits of every sha256, row 3 the last ones. Row 0 is contiguous and
sorted, which is what numpy.searchsorted wants; the other three confirm a hit.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.schema import SHA256, ReleaseError

_CHUNK = 1 << 16


def words_of(sha256s: Iterable[str] | pa.ChunkedArray) -> np.ndarray:
    """n hexadecimal sha256 → uint64 [n, 4]. Raises ReleaseError naming the first that is none."""
    if isinstance(sha256s, str):
        raise ReleaseError(f"{sha256s!r} is one hash; give a list of them")
    if isinstance(sha256s, pa.Array | pa.ChunkedArray):
        sha256s = sha256s.to_pylist()
    sha256s = list(sha256s)
    try:
        raw = bytes.fromhex("".join(sha256s))
        if len(raw) != 32 * len(sha256s) or (sha256s and set(map(len, sha256s)) != {64}):
            raise ValueError
    except (ValueError, TypeError):
        bad = next(s for s in sha256s if not (isinstance(s, str) and SHA256.fullmatch(s.lower())))
        raise ReleaseError(f"{bad!r} is not a sha256 (64 hexadecimal digits)") from None
    return np.frombuffer(raw, ">u8").reshape(-1, 4).astype(np.uint64)


def hex_of(words: np.ndarray) -> list[str]:
    """uint64 [n, 4] → n hexadecimal sha256."""
    text = words.astype(">u8").tobytes().hex()
    return [text[i : i + 64] for i in range(0, len(text), 64)]


def find(index: np.ndarray, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row of each hash: index uint64 [4, rows], words uint64 [n, 4] → (int64 [n], found bool [n]).

    Rows of hashes that are not there are arbitrary (but valid).
    """
    rows = np.searchsorted(index[0], words[:, 0])
    np.minimum(rows, index.shape[1] - 1, out=rows)
    same_prefix = index[0][rows] == words[:, 0]
    found = same_prefix.copy()
    for w in range(1, 4):
        found &= index[w][rows] == words[:, w]
    if found.all():
        return rows, found
    # Two hashes share 64 leading bits about once in 6·10^9 rows, but the answer must be right then too.
    for i in np.flatnonzero(same_prefix & ~found):
        low, high = 0, index.shape[1]
        for w in range(4):
            column = index[w][low:high]
            low, high = low + np.searchsorted(column, words[i, w]), low + np.searchsorted(column, words[i, w], "right")
        rows[i], found[i] = min(low, index.shape[1] - 1), high > low
    return rows, found


class IndexWriter:
    """Collects the hashes in their final order and lays them out word by word."""

    def __init__(self, spool: Path) -> None:
        self.spool, self.rows = open(spool, "w+b"), 0

    def add(self, words: np.ndarray) -> None:
        self.spool.write(words.astype("<u8").tobytes())
        self.rows += len(words)

    def finish(self, path: Path) -> np.ndarray:
        """Write index.npy and return it, mapped read-only."""
        self.spool.flush()
        out = np.lib.format.open_memmap(path, mode="w+", dtype="<u8", shape=(4, self.rows))
        self.spool.seek(0)
        for start in range(0, self.rows, _CHUNK):
            words = np.frombuffer(self.spool.read(32 * _CHUNK), "<u8").reshape(-1, 4)
            out[:, start : start + len(words)] = words.T
        out.flush()
        self.spool.close()
        del out
        return np.load(path, mmap_mode="r")
