"""Processes for tests and benchmarks: a python that runs to its end, and servers that last as long as a block."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]


def run(folder: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """`python COMMAND` in `folder`, on the code of this checkout, with its output as text."""
    given = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    options = {"capture_output": True, "text": True, "timeout": 1200}
    return subprocess.run([sys.executable, *map(str, command)], cwd=folder, env=given, **options)


def printed(folder: Path, *command: str | Path, **environment: str) -> str:
    """What `run` prints where nothing fails."""
    done = run(folder, *command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def serving(command: list[str], url: str, log: str | Path = os.devnull, **options) -> Iterator[subprocess.Popen]:
    """`command`, run until the block ends; it begins when `url` answers. What it prints goes to the file `log`."""
    with open(log, "wb") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=lines, **options)
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urlopen(url, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, f"{command} does not start"
                time.sleep(0.2)
        yield server
    finally:
        server.kill()
        server.wait()


def transformers_serve(model: Path, port: int, environment=os.environ) -> AbstractContextManager[subprocess.Popen]:
    """`transformers serve` of the checkpoint `model`, in float32 on the CPU."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    command += ["--device", "cpu", "--dtype", "float32", "--port", str(port)]
    return serving(command, f"http://127.0.0.1:{port}/health", env=environment)
