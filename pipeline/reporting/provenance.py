"""Section "Provenance": what this run was made of, folded away."""

import platform
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import shards
from pipeline.reporting.blocks import Block, Listing, Missing
from pipeline.reporting.inputs import Inputs

PACKAGES = ("teachonce", "torch", "transformers", "accelerate", "numpy", "pillow", "pyarrow")


def hashes(inputs: Inputs) -> Iterator[Block]:
    """Of captions, priors and weights, and versions; other sections say what is not there."""
    lines = [f"made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, code {commit() or 'outside a git repository'}"]
    with suppress(shards.ReleaseError, OSError):
        about = shards.open_release(inputs.paths.release).manifest
        lines.append(f"teacher {about['teacher'].get('name', '')} {about['teacher_fingerprint']}")
        lines.append(f"embedder {about['embedder'].get('name', '')} {about['embedding_fingerprint']}")
        lines.append(f"release {about['manifest_sha256']}")
    with suppress(Missing):
        lines.append(f"weights {inputs.results['model']['weights_sha256']}")
    lines.append(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    lines += [f"{name} {metadata.version(name)}" for name in PACKAGES]
    yield Listing("Hashes and versions", "\n".join(lines))


def parameters(file: Path) -> Iterator[Block]:
    """The parameter file as it stands."""
    yield Listing(f"Parameters: {file.name}", file.read_text(encoding="utf-8"))


def commit() -> str:
    """The commit, with a + where tracked files differ from it; "" outside a repository."""
    with suppress(OSError, subprocess.TimeoutExpired):
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
    return ""


BLOCKS = (hashes,)
