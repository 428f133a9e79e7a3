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
        files = _outside(_images_below(path), path, out)
        jobs = [Job(file, out / file.relative_to(path)) for file in files] if out else []
    else:
        files = [Path(name) for name in sorted(glob.glob(source, recursive=True)) if Path(name).is_file()]
        if not files:
            raise RestorePathError(f"{source}: no such file or folder, and no file matches it as a pattern")
        root = Path(_fixed_part(source))
        jobs = [Job(file, out / file.relative_to(root)) for file in _outside(files, root, out)] if out else []
    if out is None and not path.is_file():
        raise RestorePathError("only one image can go to standard output; name an output folder")
    if not jobs:
        raise RestorePathError(f"{source}: no image in it (outside of {target}); looked for {', '.join(READABLE)}")
    if len(jobs) > 1 and out.is_file():
        raise RestorePathError(f"{target} is a file, but {source} names {len(jobs)} images; name a folder")
    for job in jobs:
        if job.target and job.target.exists() and job.source.samefile(job.target):
            raise RestorePathError(f"{job.target} would be written over its own input; name another output")
    return jobs


def _images_below(root: Path) -> list[Path]:
    """Images below `root`, symbolic links followed, nothing hidden.

    A folder that cannot be listed and a link that leads nowhere are among them: reading them fails, and is reported.
    """
    found, entered = [], set()

    def unlistable(error: OSError) -> None:
        found.append(Path(error.filename))

    for folder, below, names in os.walk(root, onerror=unlistable, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in entered else [name for name in below if not name.startswith(".")]
        if real not in entered:
            files = (Path(folder, name) for name in names if name.lower().endswith(READABLE) and name[0] != ".")
            found += [file for file in files if file.is_symlink() or not os.path.exists(file) or os.path.isfile(file)]
        entered.add(real)
    return sorted(found)


def _outside(files: list[Path], root: Path, out: Path | None) -> list[Path]:
    """Without what lies in the output folder, where that is inside the input folder."""
    if out is None or not out.is_dir() or root.resolve() not in out.resolve().parents:
        return files
    return [file for file in files if out.resolve() not in file.resolve().parents]


def _fixed_part(pattern: str) -> str:
    """The folder in front of the first wildcard: what is below it is the structure to keep."""
    parts = Path(pattern).parts
    fixed = parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)]
    return str(Path(*fixed)) if fixed else "."
