"""A real S3 server on the loopback, for tests: moto's, in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from student import places


def upload(folder: Path, address: str) -> None:
    """Every file below `folder`, as the user's own tools would copy them."""
    for file in folder.rglob("*"):
        if file.is_file():
            places.write_whole(places.join(address, file.relative_to(folder).as_posix()), file.read_bytes())


def forget() -> None:
    """Forget an earlier server; also what forks image workers, which keeps the environment that it began in."""
    import s3fs

    places._files.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    forkserver._forkserver._stop()


@contextmanager
def s3_server(log: str | Path = os.devnull) -> Iterator[str]:
    """Serve an empty `s3://lab`, which this process and those that it starts reach; yields that address.

    `log`: gets a line a request, `"GET /lab/a.png HTTP/1.1" 200`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    asked = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
    asked |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in asked}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with open(log, "wb") as lines:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=lines)
    try:
        os.environ.update(asked)
        deadline = time.monotonic() + 120
        while True:
            try:
                urlopen(f"{address}/moto-api/", timeout=5).close()
                break
            except (URLError, OSError):
                assert server.poll() is None and time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.2)
        import s3fs

        forget()
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("lab")
        yield "s3://lab"
    finally:
        server.kill()
        server.wait()
        forget()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
