"""Several processes write one release at once: each succeeds, and one of them stays, whole."""

import multiprocessing

from shards_maker import make_release

from shards.replace import staged
from shards.verify import verify


def write(source, target, times) -> None:
    for _ in range(times):
        with staged(target) as folder:
            for file in source.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())


def test_writers_at_once_all_succeed(tmp_path):
    make_release(tmp_path / "source")
    context, target = multiprocessing.get_context("spawn"), tmp_path / "out/r"
    writers = [context.Process(target=write, args=(tmp_path / "source", target, 40)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert verify(target) == [] and [path.name for path in target.parent.iterdir()] == ["r"]
