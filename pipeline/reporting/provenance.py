"""Section "Provenance": what this run was made of, folded away."""

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pipeline.reporting.blocks import Block, Listing
from pipeline.reporting.inputs import Inputs
from student.places import join, read

PACKAGES = ("teachonce", "torch", "transformers", "accelerate", "numpy", "pillow", "pyarrow")


def made_of(inputs: Inputs, params: Path) -> Iterator[Block]:
    """Date, commit and versions, and the files that say the rest, as they stand."""
    versions = "\n".join(f"{name} {_version(name)}" for name in PACKAGES)
    yield Listing("Code", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit() or 'unknown'}\n{versions}")
    for file in (str(params), join(inputs.paths.release, "manifest.json"), join(inputs.paths.student, "config.json")):
        with suppress(OSError):  # a release out of reach is named in the section "Captions"
            yield Listing(file, read(file).decode(errors="replace"))


def _version(package: str) -> str:
    with suppress(metadata.PackageNotFoundError):  # teachonce itself, from a checkout
        return metadata.version(package)
    return "not installed"


def commit() -> str:
    """The commit, with a + where tracked files differ from it; "" outside a repository."""
    with suppress(OSError, subprocess.TimeoutExpired):
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    return ""
