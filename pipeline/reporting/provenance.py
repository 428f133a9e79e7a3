"""Section "Provenance": what this run was made of, folded away."""

import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import shards
from pipeline.reporting.blocks import Block, Listing, Missing
from pipeline.reporting.inputs import Inputs

PACKAGES = ("teachonce", "torch", "transformers", "accelerate", "numpy", "pillow", "pyarrow")


def made_of(inputs: Inputs, params: Path) -> Iterator[Block]:
    """Hashes of captions, priors and weights; versions; the parameter file. What is not there is left out."""
    lines = [f"made     {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, code {commit() or 'outside a git repository'}"]
    try:
        about = shards.open_release(inputs.paths.release).manifest
        lines.append(f"teacher  {about['teacher'].get('name', '')} {about['teacher_fingerprint']}")
        lines.append(f"embedder {about['embedder'].get('name', '')} {about['embedding_fingerprint']}")
        lines.append(f"release  {about['rows']} rows, dim {about['dim']}, {about['manifest_sha256']}")
    except (shards.ReleaseError, OSError):
        pass  # the section about captions says what is missing
    try:
        lines.append(f"weights  {inputs.results['model']['weights_sha256']}")
    except Missing:
        pass
    lines.append(f"python   {platform.python_version()} on {platform.system()} {platform.machine()}")
    lines += [f"{name} {metadata.version(name)}" for name in PACKAGES]
    yield Listing("Hashes and versions", "\n".join(lines))
    yield Listing(f"Parameters: {params.name}", params.read_text(encoding="utf-8"))


def commit() -> str:
    """The commit, with a + where tracked files differ from it; "" outside a repository."""
    try:
        say = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, timeout=30)  # noqa: E731
        head, changed = say("rev-parse", "HEAD"), say("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + "+" * bool(changed.stdout.strip()) if head.returncode == 0 else ""
