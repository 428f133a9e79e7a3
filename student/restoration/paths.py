"""Which files to restore, and where each result goes. Imports nothing heavy, so that mistakes are answered at once."""

import glob
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from student.files import printable, write_file
from student.images.formats import READABLE, UNSUPPORTED, is_hidden, is_image_name


class RestorePathError(ValueError):
    """INPUT and OUTPUT do not fit together; the message is one line and names the remedy."""


@dataclass(frozen=True)
class Job:
    """One image: `source` None is standard input, `target` None standard output."""

    source: Path | None
    target: Path | None

    @property
    def name(self) -> str:
        """As a terminal may show it."""
        return "standard input" if self.source is None else printable(str(self.source))

    @property
    def output_suffix(self) -> str:
        """The suffix that asks for another format than the input's, or nothing."""
        if self.target is None or (self.source and self.source.suffix.lower() == self.target.suffix.lower()):
            return ""
        return self.target.suffix.lower()

    def read(self) -> bytes:
        from student.images.picture import read_file

        return sys.stdin.buffer.read() if self.source is None else read_file(self.source)

    def write(self, data: bytes) -> None:
        """The whole file or none of it."""
        if self.target is None:
            rest = memoryview(data)
            while rest:  # past Python's buffer, which after a failure would fail once more when the process ends
                rest = rest[os.write(sys.stdout.fileno(), rest) :]
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.target, data)


@dataclass(frozen=True)
class Plan:
    """The images that INPUT names, each with its output, and images below it that are of an unsupported kind."""

    jobs: list[Job]
    skipped: list[Path]

    @property
    def skipped_words(self) -> str:
        """Such as "skipped 2 files that are not supported (.gif, .heic)", or nothing."""
        return _skipped_words(self.skipped)


def explanation_of(target: Path) -> Path:
    return target.with_name(target.name + ".explain.json")


def plan_jobs(source: str, target: str) -> Plan:
    """What there is to do; raises `RestorePathError`."""
    out = None if target == "-" else Path(target)
    skipped: list = []
    if source == "-":
        if out is not None and (out.is_dir() or not out.suffix):
            raise RestorePathError(f"{target}: standard input is one image; name an output file such as out.png, or -")
        return Plan([Job(None, out)], skipped)
    path = Path(source)
    if path.is_file():
        into = out is not None and (out.is_dir() or target.endswith(os.sep) or not out.suffix)
        jobs = [Job(path, out / path.name if into else out)]
    elif path.is_dir():
        found = _outside(_images_below(path), path, out)
        skipped = [file for file in found if file.name.lower().endswith(UNSUPPORTED)]
        files = sorted(set(found) - set(skipped))
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
        but = f"; {words}" if (words := _skipped_words(skipped)) else ""
        raise RestorePathError(f"{source}: no image in it (outside of {target}); looked for {', '.join(READABLE)}{but}")
    if len(jobs) > 1 and out.is_file():
        raise RestorePathError(f"{target} is a file, but {source} names {len(jobs)} images; name a folder")
    for job in jobs:
        if job.target and os.path.exists(job.target) and os.path.samefile(job.source, job.target):
            raise RestorePathError(f"{job.target} would be written over its own input; name another output")
    return Plan(jobs, skipped)


def enlarged(data: bytes, scale: int) -> bytes:
    """A PNG of the picture in `data`, upright, `scale` times as large; raises `ImageFileError` for what is no 8-bit
    still picture."""
    import io

    import numpy as np
    from PIL import Image

    from student.data.resize import enlarge
    from student.images.files import read_still
    from student.images.picture import ImageFileError, check_size

    still = read_still(data)
    if still.samples.dtype != np.uint8:
        raise ImageFileError(
            "--scale is for pictures of 8 bits; enlarge others with python -m pipeline.prepare enlarge"
        )
    pixels = still.seen_upright()
    pixels = pixels[..., :1] if still.samples.gray else pixels
    check_size(scale * pixels.shape[1], scale * pixels.shape[0], None)
    large = np.round(enlarge(pixels, scale) * 255).astype(np.uint8)
    image = Image.fromarray(large[..., 0] if still.samples.gray else large)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def check_writable(jobs: list[Job]) -> None:
    """Raises `RestorePathError` for an output folder that cannot be made or written to, before hours of work."""
    for folder in sorted({job.target.parent for job in jobs if job.target}):
        there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
        if not there.is_dir():
            raise RestorePathError(f"{there} is a file, and outputs should go below it; name another output folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise RestorePathError(f"{there}: no permission to write there; name another output folder")


def _skipped_words(skipped: list[Path]) -> str:
    if not skipped:
        return ""
    kinds = ", ".join(sorted({file.suffix.lower() for file in skipped}))
    files = "1 file that is" if len(skipped) == 1 else f"{len(skipped)} files that are"
    return f"skipped {files} not supported ({kinds})"


def _images_below(root: Path) -> list[Path]:
    """Images below `root`, unsupported ones too, symbolic links followed, nothing hidden.

    A folder that cannot be listed and a link that leads nowhere are among them: reading them fails, and is reported.
    """
    found, entered = [], set()

    def unlistable(error: OSError) -> None:
        found.append(Path(error.filename))

    for folder, below, names in os.walk(root, onerror=unlistable, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in entered else [name for name in below if not is_hidden(name)]
        if real not in entered:
            files = [Path(folder, name) for name in names if not is_hidden(name)]
            files = [file for file in files if file.name.lower().endswith(UNSUPPORTED) or is_image_name(file)]
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
