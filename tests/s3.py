"""A real S3 server on the loopback, for tests: moto's, in a process of its own. Its fixtures are every test's."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import pytest
from processes import free_port, serving

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
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    asked = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
    asked |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with serving(command, f"{address}/moto-api/", log), pytest.MonkeyPatch.context() as patch:
        for name, value in asked.items():
            patch.setenv(name, value)
        import s3fs

        forget()
        try:
            s3fs.S3FileSystem(skip_instance_cache=True).mkdir("lab")
            yield "s3://lab"
        finally:
            forget()


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    """The requests to `bucket`, a line each."""
    return tmp_path_factory.mktemp("log") / "requests"


@pytest.fixture(scope="module")
def bucket(log) -> Iterator[str]:
    """An empty `s3://lab`."""
    with s3_server(log) as address:
        yield address
