"""Checkpoints of a run.

    artifacts/student/checkpoints/
      1a2b3c4d/            one run, named by what decides its numbers: other parameters or data have their own
        step-00000400/     Accelerate's state (weights, optimiser, scaler), the average, log.jsonl up to this step, and
                           meta.json with the sha256 of them all
        written            sha256 of the weights that this run wrote into artifacts/student

A directory named `step-*` is complete: it is written under another name, flushed to disk, then renamed.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from student.files import flush

META = "meta.json"
Values = dict[str, Any]
"""Flat, of what JSON has."""
Writer = Callable[[Path], None]


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message names the directory and the remedy."""


class Checkpoints:
    """The run of `identity`, everything that decides its numbers. Only the main process writes, but for
    `save`'s writers."""

    def __init__(self, out: str | Path, identity: Values):
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        self.identity, self.folder = identity, Path(out) / "checkpoints" / name
        self.written = self.folder / "written"

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"))

    def latest(self) -> Path | None:
        return max(self.all(), default=None)

    def open(self) -> str | None:
        """Sweep away what a killed process left. Returns, for a run that begins beside others, how it differs from the
        newest of them."""
        for leftover in [*self.folder.glob(".writing-*"), *self.folder.glob(".deleting-*")]:
            shutil.rmtree(leftover)
        others = sorted(self.folder.parent.glob(f"*/step-*/{META}"), key=os.path.getmtime)
        if self.all() or not others:
            return None
        newest = others[-1].parent
        old, new = read_meta(newest)["identity"], self.identity
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        differing = "; ".join(f"{key} {old.get(key)!s:.40} → {new.get(key)!s:.40}" for key in keys)
        return f"the run found here was another one ({differing}); it is kept in {newest.parent}"

    def save(self, step: int, meta: Values, writers: Iterable[Writer], keep_last: int, process: Accelerator) -> None:
        """Write `step-NNNNNNNN`, then delete what is neither among the `keep_last` newest nor the best.

        Every process calls its writers with the folder. The best is that of the highest `meta["val_psnr"]`.
        """
        final, temporary = self.folder / f"step-{step:08d}", self.folder / f".writing-step-{step:08d}"
        if process.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        process.wait_for_everyone()
        for write in writers:
            write(temporary)
        process.wait_for_everyone()
        if process.is_main_process:
            files = [path for path in temporary.rglob("*") if path.is_file()]
            meta = {"step": step, "identity": self.identity} | meta
            meta["sha256"] = {str(path.relative_to(temporary)): sha256_of(path) for path in files}
            (temporary / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
            for path in [*temporary.rglob("*"), temporary]:
                flush(path)
            if final.exists():
                _delete(final)
            os.rename(temporary, final)
            flush(self.folder)
            scores = self.scores()
            for path in self.all()[:-keep_last]:
                if path != max(scores, key=scores.__getitem__, default=None):
                    _delete(path)
        process.wait_for_everyone()

    def scores(self) -> dict[Path, float]:
        """Validation PSNR of the checkpoints that have one."""
        return {path: score for path in self.all() if (score := read_meta(path)["val_psnr"]) is not None}


def read_meta(path: Path) -> Values:
    """step, identity, val_psnr, bad_steps, sha256 of a checkpoint; raises `CheckpointError`."""
    try:
        return json.loads((path / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / META}: {error}; delete {path} to resume from an older checkpoint") from None


def check_files(folder: Path, digests: dict[str, str]) -> None:
    """Raises `CheckpointError` for a file of a checkpoint that is not what was written."""
    for name, sha256 in digests.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != sha256:
            raise CheckpointError(
                f"{folder / name}: damaged or gone (its sha256 is not the one in {META}); delete {folder} to resume "
                "from an older checkpoint"
            )


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _delete(path: Path) -> None:
    doomed = path.with_name(f".deleting-{path.name}")
    os.rename(path, doomed)
    shutil.rmtree(doomed)
