"""Images decoded ahead of the captioner, in processes (`pipeline.image_workers`)."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from PIL import Image

from pipeline.image_workers import FileGivenUp, ImageWorkers
from student.images.files import read_8_bit
from student.images.picture import ImageFileError, TooLittleMemory, read_file


@dataclass(frozen=True)
class Job:
    """One image to caption: its identity, where to find it, and the perspectives that the store lacks."""

    sha256: str
    paths: tuple[str, ...]
    perspectives: tuple[str, ...]


@dataclass(frozen=True)
class Decoded:
    """What became of a job: `pixels` as the captioner prepared them, or `status` and `error`."""

    job: Job
    path: str
    pixels: Any = None
    status: str = "ok"
    error: str | None = None
    seconds: float = 0.0


def decode(sha256: str, paths: Iterable[str], max_pixels: int) -> tuple[str, str, Image.Image | str]:
    """`(path, "ok", image)`, or `(path, status, reason)`; the first path that still has the indexed bytes is used."""
    reason = ""
    for path in paths:
        try:
            content = read_file(path)
        except (OSError, ImageFileError) as error:
            reason = f"{path}: {getattr(error, 'strerror', None) or error}"
            continue
        if hashlib.sha256(content).hexdigest() != sha256:
            reason = f"{path}: changed since it was indexed; run python -m pipeline.index"
            continue
        try:
            return path, "ok", read_8_bit(content, max_pixels)
        except (TooLittleMemory, MemoryError) as error:
            return path, "error", str(error) or "not enough memory to decode it"
        except ImageFileError as error:
            return path, "bad_image", str(error)
    return path, "error", reason


class DecodePool:
    """Decodes jobs ahead of the captioner, in order, never more than `ahead` images in memory."""

    def __init__(self, workers: ImageWorkers, max_pixels: int):
        self.workers, self.max_pixels = workers, max_pixels

    def run(self, jobs: Iterable[Job], prepare: Callable[[Image.Image], Any], ahead: int) -> Iterator[Decoded]:
        """Yield one `Decoded` per job, in the order of `jobs`; `prepare` runs in the decoding threads."""
        waiting: deque[Future] = deque()
        for job in jobs:
            waiting.append(self.workers.threads.submit(self._one, job, prepare))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _one(self, job: Job, prepare: Callable[[Image.Image], Any]) -> Decoded:
        started = perf_counter()
        try:
            path, status, result = self.workers.call(decode, job.sha256, job.paths, self.max_pixels)
        except FileGivenUp as error:
            path, status, result = job.paths[0], "error", str(error)
        seconds = perf_counter() - started
        if status != "ok":
            return Decoded(job, path, status=status, error=result, seconds=seconds)
        try:
            return Decoded(job, path, pixels=prepare(result), seconds=seconds)
        except Exception as error:  # a picture that the model's image processor refuses costs only itself
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Decoded(job, path, status="error", error=reason, seconds=seconds)
