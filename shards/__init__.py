"""Caption releases: image captions and their embeddings, keyed by the sha256 of the image file.

Needs numpy and pyarrow, nothing else. The format is described in shards/README.md.
"""

from shards.combine import copy_release
from shards.reader import Release, open_release
from shards.schema import FORMAT_VERSION, DamagedRelease, ReleaseConflict, ReleaseError, UnknownImage
from shards.writer import write_release

__all__ = [
    "FORMAT_VERSION",
    "DamagedRelease",
    "Release",
    "ReleaseConflict",
    "ReleaseError",
    "UnknownImage",
    "copy_release",
    "open_release",
    "write_release",
]
