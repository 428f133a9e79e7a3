"""Format version 1 of a caption release: names, arrow schemas and errors (the prose is in shards/README.md)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

import pyarrow as pa

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CARD = "README.md"
INDEX = "index.npy"
ALIASES = "aliases.parquet"
PART = "features-{:05d}.parquet"
RELEASE_NAMES = re.compile(r"manifest\.json|README\.md|index\.npy|aliases\.parquet|features-\d{5,}\.parquet")
# What systems and git lay into any folder: neither part of a release nor damage.
BYSTANDERS = re.compile(r"\.DS_Store|\._.*|\.git(attributes|ignore|keep)|\.nfs.*|Thumbs\.db|desktop\.ini")
SHA256 = re.compile(r"[0-9a-f]{64}")

# A stored float16 vector of unit length misses 1 by at most 5e-4 (half a unit in the last place of every component).
NORM_TOLERANCE = 2e-3


class ReleaseError(Exception):
    """A release cannot be written, opened or used; the message names the file or key, the value and the remedy."""


class NoRelease(ReleaseError):
    """There is nothing at the path, or the address cannot be asked."""


class DamagedRelease(ReleaseError):
    """A file of the release is missing, altered or belongs to another release."""


class ReleaseConflict(ReleaseError):
    """Two rows claim the same image with different content."""


class UnknownImage(ReleaseError, KeyError):
    """The release holds no row for this image."""

    __str__ = Exception.__str__  # KeyError would print the message inside quotes


CAPTION = pa.struct(
    [
        pa.field("perspective", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
    ]
)
CAPTIONS = pa.list_(pa.field("element", CAPTION, nullable=False))

ALIAS_SCHEMA = pa.schema(
    [pa.field(n, pa.string(), nullable=False) for n in ("path", "dataset", "domain", "image_sha256")]
)


def vector_columns(apart: Sequence[str] = ()) -> list[str]:
    """`embedding`, then one `embedding_<perspective>` for each perspective that is also kept apart."""
    return ["embedding", *(f"embedding_{perspective}" for perspective in sorted(apart))]


def feature_schema(dim: int, apart: Sequence[str] = ()) -> pa.Schema:
    """Arrow schema of features-*.parquet."""
    vector = pa.list_(pa.field("element", pa.float16(), nullable=False), dim)
    return pa.schema(
        [
            pa.field("image_sha256", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("captions", CAPTIONS, nullable=False),
            *(pa.field(name, vector, nullable=False) for name in vector_columns(apart)),
        ]
    )


def group_rows(dim: int, apart: Sequence[str] = ()) -> int:
    """Rows of a row group: about 8 MiB of vectors, a power of two, at most 16384.

    Every column of a row group is one page (arrow would begin a new page at 20,000 rows), so that the vectors of a
    group lie in one run of bytes and can be mapped into memory as they are.
    """
    rows = max(1, (8 << 20) // (2 * dim * (1 + len(apart))))
    return min(16384, 1 << (rows.bit_length() - 1))


def canonical_json(value: object) -> bytes:
    """One byte string per value: sorted keys, no spaces, UTF-8. Raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_json(value: object) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
