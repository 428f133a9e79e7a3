"""Images decoded ahead of the captioner, in processes (`student.images.workers`)."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter

from PIL import Image

from student.images.files import read_8_bit
from student.images.picture import ImageFileError, TooLittleMemory, read_file
from student.images.workers import FileGivenUp, ImageWorkers
from teacher.square import Square


@dataclass(frozen=True)
class Job:
    """One image to caption: its identity, where to find it, and the perspectives that the store lacks."""

    sha256: str
    paths: tuple[str, ...]
    perspectives: tuple[str, ...]


@dataclass(frozen=True)
class Decoded:
    """What became of a job: `image` as the teacher sees it, or `status` and `error`."""

    job: Job
    path: str
    image: Image.Image | None = None
    status: str = "ok"
    error: str | None = None
    seconds: float = 0.0


def decode(sha256: str, paths: Iterable[str], max_pixels: int, square: Square) -> tuple[str, str, Image.Image | str]:
    """`(path, "ok", its square)` or `(path, status, reason)`, of the first path that still has the indexed bytes."""
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
            return path, "ok", square(read_8_bit(content, max_pixels))
        except (TooLittleMemory, MemoryError) as error:
            return path, "error", str(error) or "not enough memory to decode it"
        except ImageFileError as error:
            return path, "bad_image", str(error)
    return path, "error", reason


class DecodePool:
    """Decodes jobs ahead of the captioner, in order, never more than `ahead` images in memory."""

    def __init__(self, workers: ImageWorkers, max_pixels: int, square: Square):
        self.workers, self.max_pixels, self.square = workers, max_pixels, square

    def run(self, jobs: Iterable[Job], ahead: int) -> Iterator[Decoded]:
        """Yield one `Decoded` per job, in the order of `jobs`."""
        waiting: deque[Future] = deque()
        for job in jobs:
            waiting.append(self.workers.threads.submit(self._one, job))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _one(self, job: Job) -> Decoded:
        started = perf_counter()
        try:
            path, status, result = self.workers.call(decode, job.sha256, job.paths, self.max_pixels, self.square)
        except FileGivenUp as error:
            path, status, result = job.paths[0], "error", str(error)
        seconds = perf_counter() - started
        if status != "ok":
            return Decoded(job, path, status=status, error=result, seconds=seconds)
        return Decoded(job, path, image=result, seconds=seconds)
