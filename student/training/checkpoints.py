"""Checkpoints of a run, and whose run a directory holds.

    artifacts/student/checkpoints/
      step-00000400/      Accelerate's state (weights, optimiser, scaler), the average, meta.json with their sha256
      earlier/1a2b3c4d/   a run of other parameters or data, set aside: its newest checkpoint, log and weights

A directory named `step-*` is complete: it is written under another name, flushed to disk, then renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from student.files import flush

META = "meta.json"
PRODUCTS = (
    "config.json",
    "model.safetensors",
    "README.md",
    "log.jsonl",
    "metrics.json",
    "curves",
    "panels",
    "trackers",
)
"""What a run leaves beside its checkpoints in `artifacts/student/`."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the directory, the differing keys, and the remedy."""


def run_id(identity: dict[str, Any]) -> str:
    """Eight hexadecimal digits that name a run by what decides its numbers."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def differing_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key old → new` for every key that differs."""
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key} {_short(old.get(key))} → {_short(new.get(key))}" for key in keys]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:9] + '…"'


class Checkpoints:
    """The checkpoints of one output directory. Only the main process writes, but for `save`'s `write`."""

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self.folder = self.out / "checkpoints"

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / META).is_file())

    def latest(self) -> Path | None:
        return (self.all() or [None])[-1]

    def open_run(self, identity: dict[str, Any], on_changed: str) -> str | None:
        """Make `checkpoints/` hold the run of this identity: as it is, brought back from `earlier/`, or empty.

        Returns a line to print when a run of another identity was set aside, or None. Raises `CheckpointError` with
        the differing keys where `on_changed` is "refuse".
        """
        for leftover in [*self.folder.glob(".writing-*"), *self.folder.glob(".deleting-*")]:
            shutil.rmtree(leftover)
        latest, message = self.latest(), None
        if latest is not None:
            old = read_meta(latest)["identity"]
            if old == identity:
                return None
            differing = "; ".join(differing_keys(old, identity))
            if on_changed == "refuse":
                raise CheckpointError(
                    f"{latest}: belongs to another configuration: {differing}; restore those, choose another "
                    "paths.student, or set train.on_changed: set_aside"
                )
            aside = self._set_aside(latest, old)
            message = f"the run found here was another one ({differing}); it is kept in {aside}"
        self._bring_back(identity)
        return message

    def _set_aside(self, latest: Path, identity: dict[str, Any]) -> Path:
        aside = self.folder / "earlier" / run_id(identity)
        aside.mkdir(parents=True, exist_ok=True)
        for path in self.all()[:-1]:
            self._delete(path)
        for product in PRODUCTS:
            if (self.out / product).exists():
                _move(self.out / product, aside / product)
        # Last: a kill before this leaves a run that is found, and set aside, again.
        _move(latest, aside / latest.name)
        return aside

    def _bring_back(self, identity: dict[str, Any]) -> None:
        earlier = self.folder / "earlier" / run_id(identity)
        if not earlier.is_dir():
            return
        for path in sorted(earlier.iterdir(), key=lambda path: path.name.startswith("step-"), reverse=True):
            _move(path, (self.folder if path.name.startswith("step-") else self.out) / path.name)
        earlier.rmdir()

    def save(
        self, step: int, meta: dict[str, Any], write: Callable[[Path], None], keep_last: int, process: Any
    ) -> Path:
        """Write `step-NNNNNNNN`, then delete what is neither among the `keep_last` newest nor the best.

        Every process calls `write(folder)`; `process` is the `Accelerator`. `meta["val_psnr"]`, None or a number,
        decides which is the best.
        """
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f".writing-step-{step:08d}"
        if process.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        process.wait_for_everyone()
        write(temporary)
        process.wait_for_everyone()
        if process.is_main_process:
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            digests = {str(path.relative_to(temporary)): _sha256(path) for path in files}
            (temporary / META).write_text(json.dumps(meta | {"sha256": digests}, indent=1), encoding="utf-8")
            for path in [*temporary.rglob("*"), temporary]:
                flush(path)
            if final.exists():
                self._delete(final)
            os.rename(temporary, final)
            flush(self.folder)
            self._rotate(keep_last)
        process.wait_for_everyone()
        return final

    def scores(self) -> dict[Path, float]:
        """Validation PSNR of the checkpoints that have one."""
        return {path: score for path in self.all() if (score := read_meta(path)["val_psnr"]) is not None}

    def _rotate(self, keep_last: int) -> None:
        scores = self.scores()
        best = max(scores, key=scores.get, default=None)
        for path in self.all()[:-keep_last]:
            if path != best:
                self._delete(path)

    def _delete(self, path: Path) -> None:
        doomed = path.with_name(f".deleting-{path.name}")
        os.rename(path, doomed)
        shutil.rmtree(doomed)


def read_meta(path: Path) -> dict[str, Any]:
    """step, identity, val_psnr, bad_steps of a checkpoint; raises `CheckpointError`."""
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / META}: {error}; delete {path} to go on from an older checkpoint") from None
    if "sha256" not in meta:
        raise CheckpointError(
            f"{path}: written by an earlier version, without hashes of its files; delete it to begin anew"
        )
    return meta


def check_files(folder: Path, digests: dict[str, str]) -> None:
    """Raises `CheckpointError` for a file of a checkpoint that is not what was written."""
    for name, sha256 in digests.items():
        if not (folder / name).is_file() or _sha256(folder / name) != sha256:
            raise CheckpointError(
                f"{folder / name}: damaged or gone (its sha256 is not the one in {META}); delete {folder} to go on "
                "from an older checkpoint"
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)
