"""Other people's image files are read in processes of their own, because one bad file must cost only itself.

A decoder written in C can hang or crash on a hostile file, and no thread can be ended. pebble's processes can: each
call has a time limit, and a new process takes the place of one that was killed or died. They import no torch.
"""

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_all_start_methods, get_context
from typing import Any

from pebble import ProcessExpired, ProcessPool

from student.images.picture import ImageFileError

READ_SECONDS = 60.0
"""What takes longer than this to read and decode is given up, where nothing else is asked for."""
PRELOAD = ["student.images.files"]


class FileGivenUp(ImageFileError):
    """The process that read a file took too long or died; says which."""


class ImageWorkers:
    """Processes that answer `call`, which any thread may ask, each within `timeout_s`; a context that ends them."""

    def __init__(self, workers: int, timeout_s: float):
        # Never fork: this process has threads, and perhaps a GPU. A fork server starts a new one in milliseconds.
        context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
        if context.get_start_method() == "forkserver":
            context.set_forkserver_preload(PRELOAD)
        self.workers, self.timeout_s = workers, timeout_s
        self.threads = ThreadPoolExecutor(max(8, workers), thread_name_prefix="image")
        "for who waits for `call`"
        self._pool = ProcessPool(workers, initializer=_own_session, context=context)
        self._asked: set[Future] = set()

    def call(self, function: Callable[..., Any], *arguments: Any, extra_s: float = 0.0) -> Any:
        """`function(*arguments)` in one of the processes: what it returns or raises, or `FileGivenUp`.

        `extra_s` is added to the time that it may take.
        """
        limit = self.timeout_s + extra_s
        answer = self._pool.schedule(function, arguments, timeout=limit)
        self._asked.add(answer)
        try:
            return answer.result()
        except TimeoutError:
            raise FileGivenUp(f"took longer than {limit:g} s to read and decode") from None
        except ProcessExpired as error:
            code = error.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise FileGivenUp(f"the decoder died ({how})") from None
        finally:
            self._asked.discard(answer)

    def __enter__(self) -> "ImageWorkers":
        return self

    def __exit__(self, *error: object) -> None:
        """End the processes, whatever they are doing; calls still waiting raise `FileGivenUp`."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._pool.stop()
        self._pool.join()
        for answer in tuple(self._asked):
            with suppress(InvalidStateError):
                answer.set_exception(FileGivenUp("the stage ended"))
        self.threads.shutdown()


def try_to_read(worker: ImageWorkers, data: bytes, *arguments: Any) -> None:
    """Decode a picture for nothing, in `worker` (`read_picture` with `arguments`; raises as that does).

    What decodes there in time and without a crash does so again here. A large volume may take longer.
    """
    worker.call(_read, data, *arguments, extra_s=len(data) // 10_000_000)


def _read(*arguments: Any) -> None:
    from student.images.files import read_picture

    read_picture(*arguments)


def _own_session() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C in the terminal is for the stage to handle
