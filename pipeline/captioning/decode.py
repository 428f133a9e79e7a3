"""Reading and decoding images in separate processes, because one bad file must cost only itself.

A decoder written in C can hang or crash on a hostile file. A thread cannot be killed; a process can: each worker arms
the kernel's alarm before every image, so even a loop inside a decoder ends in time, and a new worker takes its place.
The workers import Pillow but no torch, so they start in a fraction of a second.
"""

import contextlib
import hashlib
import queue
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

from PIL import Image

from student.images.files import read_8_bit
from student.images.picture import ImageFileError

_GRACE_SECONDS = 5.0  # beyond the alarm: a worker blocked in the kernel (a dead network drive) ignores even that


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
            content = Path(path).read_bytes()
        except OSError as error:
            reason = f"{path}: {error.strerror or error}"
            continue
        if hashlib.sha256(content).hexdigest() != sha256:
            reason = f"{path}: changed since it was indexed; run python -m pipeline.index"
            continue
        try:
            return path, "ok", read_8_bit(content, max_pixels)
        except ImageFileError as error:
            return path, "bad_image", str(error)
        except MemoryError:
            return path, "bad_image", "not enough memory to decode it"
    return path, "error", reason


class Decoder:
    """One worker process, restarted whenever it dies."""

    def __init__(self, timeout_s: float, max_pixels: int):
        self.timeout_s, self.max_pixels = timeout_s, max_pixels
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", __name__ if __name__ != "__main__" else "pipeline.captioning.decode"]
        command += [str(theirs.fileno()), str(self.timeout_s), str(self.max_pixels)]
        # A session of its own: Ctrl-C in the terminal is for the captioner to handle.
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self.connection = Connection(ours.detach())

    def __call__(self, job: Job) -> tuple[str, str, Image.Image | str]:
        """As `decode`; a worker that hangs or dies gives `(path, "error", reason)`."""
        try:
            self.connection.send((job.sha256, job.paths))
            if not self.connection.poll(self.timeout_s + _GRACE_SECONDS):
                raise TimeoutError
            path, status, result = self.connection.recv()
            return path, status, Image.frombytes("RGB", *result) if status == "ok" else result
        except (EOFError, OSError) as error:
            self.close()
            code = self.process.returncode
            self._start()
            if isinstance(error, TimeoutError) or code == -signal.SIGALRM:
                return job.paths[0], "error", f"took longer than {self.timeout_s:g} s to read and decode"
            return job.paths[0], "error", f"the decoder died ({_exit(code)})"

    def close(self) -> None:
        """End the worker."""
        self.connection.close()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # blocked in the kernel: it ends when the drive answers
                self.process.wait(1.0)


class DecodePool:
    """Decodes jobs ahead of the captioner, in order, never more than `ahead` images in memory."""

    def __init__(self, workers: int, timeout_s: float, max_pixels: int):
        self.decoders = [Decoder(timeout_s, max_pixels) for _ in range(workers)]
        self._idle: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for decoder in self.decoders:
            self._idle.put(decoder)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def run(self, jobs: Iterable[Job], prepare: Callable[[Image.Image], Any], ahead: int) -> Iterator[Decoded]:
        """Yield one `Decoded` per job, in the order of `jobs`; `prepare` runs in the decoding threads."""
        waiting: deque[Future] = deque()
        for job in jobs:
            waiting.append(self._threads.submit(self._one, job, prepare))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _one(self, job: Job, prepare: Callable[[Image.Image], Any]) -> Decoded:
        decoder, started = self._idle.get(), perf_counter()
        try:
            path, status, result = decoder(job)
        finally:
            self._idle.put(decoder)
        seconds = perf_counter() - started
        if status != "ok":
            return Decoded(job, path, status=status, error=result, seconds=seconds)
        try:
            return Decoded(job, path, pixels=prepare(result), seconds=seconds)
        except Exception as error:  # a picture that the model's image processor refuses costs only itself
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            return Decoded(job, path, status="error", error=reason, seconds=seconds)

    def close(self) -> None:
        """Drop what is queued and end the workers."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for decoder in self.decoders:
            decoder.process.kill()
        self._threads.shutdown(wait=True)
        for decoder in self.decoders:
            decoder.close()


def _exit(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _serve(connection: Connection, timeout_s: float, max_pixels: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the default ends the process, even inside a C loop
    while True:
        try:
            sha256, paths = connection.recv()
        except EOFError:  # the captioner is gone
            return
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        path, status, result = decode(sha256, paths, max_pixels)
        if status == "ok":
            result = (result.size, result.tobytes())
        signal.setitimer(signal.ITIMER_REAL, 0)
        connection.send((path, status, result))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])), float(sys.argv[2]), int(sys.argv[3]))
