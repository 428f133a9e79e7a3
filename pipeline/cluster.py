"""Ranges of hashes over a Ray cluster: an actor a GPU, as many as there are, and what dies is done again elsewhere."""

import argparse
import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

LOCAL = "local"
TASKS_AHEAD = 2
"""Tasks that wait at an actor: one to do, one that needs no waiting for."""
LEAST = 256
"""Images of a task, at least, so that batches are full: ranges in which less is to do are taken together."""


def add_ray_argument(parser: argparse.ArgumentParser) -> None:
    """`--ray [ADDRESS]`."""
    told = "on a Ray cluster, an actor a GPU; without ADDRESS on this machine"
    parser.add_argument("--ray", nargs="?", const=LOCAL, metavar="ADDRESS", help=told)


def refuse_ranks() -> None:
    """Processes of `accelerate launch` or `torchrun` would all do the same; raises `ValueError`."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("one of several processes (WORLD_SIZE): start it once, with --ray for several GPUs")


def over_ranges(
    address: str,
    actor: Callable[[], Callable[[list[tuple[str, str]]], Any]],
    ranges: Iterable[tuple[str, str, int]],
    advance: Callable[[int], None],
    failure: type[Exception],
) -> Iterator[Any]:
    """Yield what an actor answers to `ranges` (low, high, images), one or several at a time, as they are done.

    `actor` makes one, in a process of its own, once it has work. An actor or a node that dies is replaced, and its task
    is done again: an actor looks for itself what is done already. An error that an actor raises ends it all, as
    `failure` of one line.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise failure(f"--ray needs Ray ({error}): pip install 'teachonce[ray]'") from None
    root = str(Path(__file__).parents[1])  # where a checkout is not installed
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    environment |= {"OMP_WAIT_POLICY": "passive"}
    with contextlib.ExitStack() as stack:
        try:
            ray.init(
                address=address,
                include_dashboard=False if address == LOCAL else None,
                log_to_driver=False,
                logging_level="error",
                runtime_env={"env_vars": environment},
            )
        except Exception as error:
            raise failure(f"--ray {address}: {str(error).splitlines()[0]}") from None
        stack.callback(ray.shutdown)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        gpus = ray.cluster_resources().get("GPU", 0)
        names = ("low", "high", "images")
        tasks = [pa.Table.from_pylist([dict(zip(names, one, strict=True)) for one in task]) for task in _tasks(ranges)]
        done = ray.data.from_arrow(tasks).map_batches(
            _Actor,
            fn_constructor_args=[actor, os.getcwd()],
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=None, max_tasks_in_flight_per_actor=TASKS_AHEAD),
            **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
        )
        try:
            for row in done.iter_rows():
                error, answer = pickle.loads(row["answer"])
                if error:
                    raise failure(error)
                advance(row["images"])
                yield answer
        except KeyboardInterrupt:
            raise failure("stopped; what is finished is kept, the same command resumes") from None
        except ray.exceptions.RayError as error:
            raise failure(f"on Ray: {str(error).strip().splitlines()[-1]}") from error


def _tasks(ranges: Iterable[tuple[str, str, int]]) -> Iterator[list[tuple[str, str, int]]]:
    held: list[tuple[str, str, int]] = []
    for one in ranges:
        held.append(one)
        if sum(images for *_, images in held) >= LEAST:
            yield held
            held = []
    if held:
        yield held


class _Actor:
    """What Ray Data calls."""

    def __init__(self, make: Callable, folder: str):
        with contextlib.suppress(OSError):  # places may all be addresses
            os.chdir(folder)
        self.make, self.work = make, None

    def __call__(self, task: pa.Table) -> pa.Table:
        error, answer = None, None
        try:
            self.work = self.work or self.make()
            answer = self.work([(row["low"], row["high"]) for row in task.to_pylist()])
        except (ValueError, OSError) as raised:
            error = " ".join(str(raised).split())
        return pa.table({"answer": [pickle.dumps((error, answer))], "images": [sum(task["images"].to_pylist())]})
