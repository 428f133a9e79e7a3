"""Which files to restore, and where each result goes. Imports nothing heavy, so that mistakes are answered at once."""

import glob
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from student.atomic import write_bytes

READABLE = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".dcm", ".dicom", ".nii", ".nii.gz")


class RestorePathError(ValueError):
    """INPUT and OUTPUT do not fit together; the message is one line and names the remedy."""


@dataclass(frozen=True)
class Job:
    """One image: `source` None is standard input, `target` None standard output."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        return "standard input" if self.source is None else str(self.source)

    @property
    def output_suffix(self) -> str:
        """The suffix that asks for another format than the input's, or nothing."""
        if self.target is None or (self.source and self.source.suffix.lower() == self.target.suffix.lower()):
            return ""
        return self.target.suffix.lower()

    def read(self) -> bytes:
        return sys.stdin.buffer.read() if self.source is None else self.source.read_bytes()

    def write(self, data: bytes) -> None:
        """The whole file or none of it."""
        if self.target is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.target, data)


def plan_jobs(source: str, target: str) -> list[Job]:
    """The images that INPUT names, each with its output; raises `RestorePathError`."""
    out = None if target == "-" else Path(target)
    if source == "-":
        if out is not None and (out.is_dir() or not out.suffix):
            raise RestorePathError(f"{target}: standard input is one image; name an output file such as out.png, or -")
        return [Job(None, out)]
    path = Path(source)
    if path.is_file():
        into = out is not None and (out.is_dir() or target.endswith(os.sep) or not out.suffix)
        jobs = [Job(path, out / path.name if into else out)]
    elif path.is_dir():
        found = (file for file in path.rglob("*") if _readable(file) and not _hidden(file, path))
        files = sorted(file for file in found if file.is_file())
        jobs = [Job(file, out / file.relative_to(path)) for file in _outside(files, out)] if out else []
    else:
        files = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]
        if not files:
            raise RestorePathError(f"{source}: no such file or folder, and no file matches it as a pattern")
        root = Path(_fixed_part(source))
        jobs = [Job(file, out / file.relative_to(root)) for file in _outside(files, out)] if out else []
    if out is None and not path.is_file():
        raise RestorePathError("only one image can go to standard output; name an output folder")
    if path.is_dir() and not jobs:
        raise RestorePathError(f"{source}: no image in it; looked for {', '.join(READABLE)}")
    if len(jobs) > 1 and out.is_file():
        raise RestorePathError(f"{target} is a file, but {source} names {len(jobs)} images; name a folder")
    for job in jobs:
        if job.target and job.target.exists() and job.source.samefile(job.target):
            raise RestorePathError(f"{job.target} would be written over its own input; name another output")
    return jobs


def _readable(file: Path) -> bool:
    return file.name.lower().endswith(READABLE)


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def _outside(files: list[Path], out: Path | None) -> list[Path]:
    """Without what lies in the output folder, which may be inside the input folder."""
    if out is None or not out.is_dir():
        return files
    return [file for file in files if out.resolve() not in file.resolve().parents]


def _fixed_part(pattern: str) -> str:
    """The folder in front of the first wildcard: what is below it is the structure to keep."""
    parts = Path(pattern).parts
    fixed = parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)]
    return str(Path(*fixed)) if fixed else "."
