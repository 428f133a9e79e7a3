"""Section "provenance": what this run was made of, so that it can be made again, or told from another."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pipeline.reporting.blocks import Block, Listing, Missing, Table
from pipeline.reporting.inputs import Inputs

PACKAGES = (
    "teachonce torch transformers accelerate bitsandbytes sentence-transformers safetensors numpy scipy scikit-image "
    "scikit-learn pillow pyarrow dvc matplotlib"
).split()


def identities(inputs: Inputs) -> Iterator[Block]:
    """Fingerprints of the captions and priors, and the student's size."""
    manifest = inputs.release.manifest
    rows = [
        ["teacher", str(manifest["teacher"].get("name", "")), manifest["teacher_fingerprint"]],
        ["embedder", str(manifest["embedder"].get("name", "")), manifest["embedding_fingerprint"]],
        *(["perspective", name, fingerprint] for name, fingerprint in sorted(manifest["fingerprints"].items())),
        ["release", f"{manifest['rows']} rows, dim {manifest['dim']}", manifest["manifest_sha256"]],
    ]
    yield Table(
        "Captions and priors",
        "Equal fingerprints mean equal captions and vectors; machine and batch size are no part of them.",
        ["what", "name", "sha256"],
        [[what, name, sha256[:16]] for what, name, sha256 in rows],
    )


def student(inputs: Inputs) -> Iterator[Block]:
    """The network's configuration."""
    text = json.dumps(inputs.student_config, indent=2)
    yield Listing("Student: config.json", text)


def times(inputs: Inputs) -> Iterator[Block]:
    """How long captioning and training took, on what."""
    rows = []
    for file in sorted(Path(inputs.paths.caption_store).glob("runs/*.json")):
        try:
            run = json.loads(file.read_text(encoding="utf-8"))
            rows.append(
                [
                    "captioning",
                    f"{run['images']} images, {run['captions_per_second']:.1f} captions/s",
                    _duration(run["seconds"]["total"]),
                    str(run.get("device_name") or run.get("device", "")),
                ]
            )
        except (OSError, ValueError, KeyError, TypeError):
            rows.append(["captioning", f"{file.name} cannot be read", "", ""])
    training = [row for row in inputs.log if row.get("images_per_second")]
    if training:
        rate = sum(row["images_per_second"] for row in training) / len(training)
        rows.append(["training", f"{training[-1]['step']} steps, {rate:.1f} images/s", _training_time(inputs), ""])
    if rows:
        yield Table(
            "Times",
            f"{len(rows)} run{'s' * (len(rows) > 1)} of a teacher or a student went into this report.",
            ["stage", "what", "time", "device"],
            rows,
        )


def _training_time(inputs: Inputs) -> str:
    """From the logged rates; without validations, checkpoints and starts."""
    if inputs.batch_size is None:
        return ""
    seconds, before = 0.0, 0
    for row in inputs.log:
        if row.get("images_per_second"):
            seconds += max(row["step"] - before, 0) * inputs.batch_size / row["images_per_second"]
            before = row["step"]
    return _duration(seconds)


def machine(inputs: Inputs) -> Iterator[Block]:
    """Versions and hardware of the machine that made the report, the code's commit and the date."""
    commit, changed = git_state()
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0
    yield Table(
        "Code and machine",
        f"Made from commit {commit[:12]}{' with uncommitted changes' if changed else ''}."
        if commit
        else "Made outside a git repository.",
        ["what", "value"],
        [
            ["date", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"],
            ["commit", commit or "none"],
            ["python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"],
            ["processor", f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB"],
            ["packages", ", ".join(versions)],
        ],
    )


def files(inputs: Inputs, params: Path) -> Iterator[Block]:
    """The parameter file and, where there is one, dvc.lock."""
    yield Listing(f"Parameters: {params.name}", params.read_text(encoding="utf-8"))
    lock = Path("dvc.lock")
    if not lock.is_file():
        raise Missing("dvc.lock: there is none; this run was not made by DVC", "dvc repro")
    yield Listing("dvc.lock: hashes of every stage's inputs and outputs", lock.read_text(encoding="utf-8"))


def git_state() -> tuple[str, bool]:
    """The commit ("" outside a repository) and whether tracked files differ from it."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "", False
    return (commit.stdout.strip(), bool(status.stdout.strip())) if commit.returncode == 0 else ("", False)


def processor() -> str:
    """The processor's name as people know it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02} min" if hours else f"{rest // 60} min {rest % 60:02} s"


BLOCKS = (identities, times, machine, student)
