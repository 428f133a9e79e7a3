"""Captions over a real Ray cluster on this machine: actors, a node and the driver are killed, and nothing is lost."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from s3 import s3_server
from toy_project import Project

from pipeline import caption as stage
from pipeline import cluster, embed
from student.places import write_whole

OFTEN = ["--set", "caption.flush_images=4", "--set", "caption.quantization=none", "--set", "caption.max_new_tokens=4"]

KEYS = ("image_sha256", "perspective", "caption", "n_tokens", "finish_reason", "status", "error")


def parts(project: Project) -> list[Path]:
    return list(project.root.glob("store/*/part-*.parquet"))


def wait_for(condition, process, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def actors(process) -> Iterator[psutil.Process]:
    """The actors that work for a driver."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::MapWorker"):
                yield child
        except psutil.Error:
            pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Project:
    """What one process makes of 120 images."""
    project = Project(tmp_path_factory.mktemp("whole"), 120)
    before = os.getcwd()
    os.chdir(project.root)
    try:
        stage.main(OFTEN)
    finally:
        os.chdir(before)
    return project


def test_a_killed_actor_loses_and_repeats_nothing(tmp_path, whole):
    project = Project(tmp_path, 120)
    process = project.start("caption", "--ray", *OFTEN)
    wait_for(lambda: len(parts(project)) >= 6, process)
    for actor in list(actors(process)):
        actor.kill()
    kept = {part: part.read_bytes() for part in parts(project)}
    assert 0 < len(kept) < 60, "killed too late to prove anything"
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert "120 new of 120 images × 2 perspectives" in out, error
    assert project.captions() == whole.captions()  # fails on a doubled row
    assert all(part.read_bytes() == content for part, content in kept.items())


def test_ranges_in_which_little_is_to_do_are_one_task():
    ranges = [(str(n), str(n + 1), images) for n, images in enumerate([300, 100, 100, 100, 5, 1])]
    tasks = list(cluster._tasks(ranges))
    assert [[n for *_, n in task] for task in tasks] == [[300], [100, 100, 100], [5, 1]]
    assert [one for task in tasks for one in task] == ranges


@pytest.mark.slow
def test_a_killed_driver_loses_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    project = Project(tmp_path, 1500)
    process = project.start("caption", "--ray", *OFTEN)
    wait_for(lambda: len(parts(project)) >= 6, process)
    orphans, killed = list(actors(process)), time.monotonic()
    process.kill()
    process.communicate()
    assert orphans and not psutil.wait_procs(orphans, timeout=30)[1], "actors outlive their driver"
    print(f"actors ended {time.monotonic() - killed:.1f} s after their driver")
    done = Counter(image for image, _ in project.captions())
    assert 0 < len(done) < 1500, "killed too late to prove anything"
    monkeypatch.chdir(tmp_path)
    stage.main(OFTEN)  # without Ray
    whole = sum(number == 2 for number in done.values())
    assert f"{1500 - whole} new of 1500 images × 2 perspectives" in capsys.readouterr().out
    assert len(project.captions()) == 3000  # fails on a doubled row


@pytest.mark.slow
def test_a_killed_node_loses_and_repeats_nothing(tmp_path, whole):
    """Two nodes on this machine; one dies with all its actors."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    project = Project(tmp_path, 120)
    os.environ["RAY_DISABLE_IMPORT_WARNING"] = "1"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        process = project.start("caption", "--ray", cluster.address, *OFTEN, "--set", "caption.flush_images=2")
        wait_for(lambda: len(parts(project)) >= 6, process)
        cluster.remove_node(second, allow_graceful=False)
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert "120 new of 120 images × 2 perspectives" in out, error
        assert project.captions() == whole.captions()
    finally:
        cluster.shutdown()
        ray.shutdown()


def move_to(bucket: str, index: Path, files: s3fs.S3FileSystem) -> None:
    """The index, and the images that it names, into `bucket`; on the disk they are gone."""
    table = pq.read_table(index)
    paths = [Path(index.parent, path) for path in table["gt_path"].to_pylist()]
    files.put(list(map(str, paths)), [f"lab/images/{path.name}" for path in paths])
    for path in paths:
        path.unlink()
    there = pa.array([f"{bucket}/images/{path.name}" for path in paths])
    table = table.set_column(table.schema.names.index("gt_path"), "gt_path", there)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_whole(f"{bucket}/index.parquet", sink.getvalue().to_pybytes())
    index.unlink()


@pytest.mark.slow
def test_images_index_and_store_at_s3_with_a_killed_actor_equal_the_local_run(tmp_path, monkeypatch):
    """1,500 images: captions and vectors made by Ray into an object store, against one process on a disk."""
    quick = [
        "--set",
        "caption.quantization=none",
        "--set",
        "caption.max_new_tokens=4",
        "--set",
        "caption.flush_images=50",
    ]
    local, remote = Project(tmp_path / "local", 1500), Project(tmp_path / "remote", 1500)
    monkeypatch.chdir(local.root)
    stage.main(quick)
    embed.main(quick)
    with s3_server() as bucket:
        files = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
        move_to(bucket, remote.root / "index.parquet", files)
        places = [f"paths.index={bucket}/index.parquet", f"paths.caption_store={bucket}/store"]
        there = [*quick, *(word for place in places for word in ("--set", place))]
        process = remote.start("caption", "--ray", *there)
        wait_for(lambda: len(files.glob("lab/store/*/part-*")) >= 6, process)
        next(actors(process)).kill()
        out, error = process.communicate(timeout=500)
        assert process.returncode == 0 and "1500 new of 1500 images" in out, error
        found = Counter()
        for name in files.glob("lab/store/*/part-*"):
            table = pq.read_table(pa.BufferReader(files.cat_file(name)))
            found.update(tuple(row[key] for key in KEYS) for row in table.to_pylist())
        assert found == Counter(tuple(row[0][key] for key in KEYS) for row in local.store_rows().values())
        monkeypatch.chdir(remote.root)
        stage.main(there)
        process = remote.start("embed", "--ray", *there)
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    for name in ("caption_stats.json", "release/manifest.json"):
        assert (remote.root / name).read_bytes() == (local.root / name).read_bytes()
