"""The index stage on real files: one row per pair, one status per fault, nothing written when it fails."""

import hashlib
import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from picture_files import picture
from processes import run

from pipeline import index
from pipeline.indexing.probe_cache import ProbeCache, probe_all, stamp_of
from pipeline.indexing.table import SCHEMA
from student.images.workers import ImageWorkers

PARAMS = """
paths: {{index: index.parquet, hash_cache: cache.sqlite}}
index:
  root: data
  workers: 2
  datasets:
    - {{name: toy, domain: natural, task: toy, splits: {{train: {{gt: gt, lq: lq}}}}}}
{more}"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        picture(tmp_path / f"data/gt/{number}.png", number)
        picture(tmp_path / f"data/lq/{number}.png", number + 100)
    (tmp_path / "params.yaml").write_text(PARAMS.format(more=""))
    return tmp_path


def rows() -> list[dict]:
    return pq.read_table("index.parquet").to_pylist()


def test_a_good_tree_gives_one_ok_row_per_pair(project, capsys):
    assert index.main([]) == 0
    table = pq.read_table("index.parquet")
    assert table.schema.equals(SCHEMA)
    assert [row["gt_path"] for row in rows()] == [f"data/gt/{n}.png" for n in range(4)]
    for row in rows():
        assert row["gt_sha256"] == hashlib.sha256(Path(row["gt_path"]).read_bytes()).hexdigest()
        assert (row["width"], row["height"], row["mode"], row["status"]) == (12, 10, "RGB", "ok")
    assert "4 pairs, 4 distinct clean images, 0 bad" in capsys.readouterr().out


def change(name: str, content) -> object:
    """Makes a function that changes a file of the folder `data`: by what `content` makes of its bytes."""
    return lambda data: (data / name).write_bytes(content((data / name).read_bytes()))


def make_pipe(data: Path) -> None:
    (data / "gt/1.png").unlink()
    os.mkfifo(data / "gt/1.png")


FAULTS = {
    "truncated": (change("lq/1.png", lambda whole: whole[:-60]), "unreadable", "data/lq/1.png: cannot be decoded"),
    "empty": (change("gt/1.png", lambda _: b""), "unreadable", "data/gt/1.png: 0 bytes"),
    "alien": (change("gt/1.png", lambda _: b"hello" * 99), "unreadable", "not an image that can be read"),
    "pipe": (make_pipe, "unreadable", "data/gt/1.png: no file but a pipe or device"),
    "lq alone": (
        lambda data: (data / "gt/1.png").unlink(), "unpaired", "data/lq/1.png: no gt with this id '1'; the nearest"
    ),
    "gt alone": (
        lambda data: (data / "lq/1.png").unlink(), "unpaired", "data/gt/1.png: no lq with this id '1'; the nearest"
    ),
    "size": (
        lambda data: picture(data / "lq/1.png", 5, (6, 5)), "size_mismatch", "data/lq/1.png: 6x5, its gt has 12x10"
    ),
    "twice": (lambda data: picture(data / "gt/1.bmp", 7), "ambiguous", "data/gt/1.png has the same id"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "status", "message"), FAULTS.values(), ids=FAULTS)
def test_each_fault_has_its_status_and_names_its_file(project, capsys, spoil, status, message):
    spoil(project / "data")
    assert index.main([]) == 1
    said = capsys.readouterr().err
    assert message in said and "1 of 4 rows are bad" in said and "Traceback" not in said
    assert not list(project.glob("*index.parquet*")), "a failed stage leaves nothing"
    assert index.main(["--set", "index.max_bad_fraction=0.25"]) == 0
    assert [row["status"] for row in rows()].count("ok") == 3
    assert [row["error"] for row in rows() if row["status"] == status and message in row["error"]]
    before = Path("index.parquet").read_bytes()
    assert index.main([]) == 1
    assert Path("index.parquet").read_bytes() == before, "a failed stage keeps the earlier index"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("index.datasets.0.name=x", "--set"),
        ("index.max_bad_fracton=1", "did you mean 'max_bad_fraction'"),
        ("index.datasets=[]", "index.datasets"),
    ],
)
def test_wrong_parameters_answer_in_one_line(project, capsys, override, message):
    assert index.main(["--set", override]) == 1
    assert message in capsys.readouterr().err


def test_the_command_ends_without_a_traceback(project):
    done = run(project, "-m", "pipeline.index", "--set", "index.root=nowhere")
    assert done.returncode == 1 and done.stderr.startswith("index: index.root = nowhere: no such folder")
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_that_lacks_the_letters_ends_no_stage(project):
    override = "paths.index=caf\u00e9.parquet"
    done = run(project, "-m", "pipeline.index", "--set", override, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and r"\u2192 caf\xe9.parquet" in done.stdout, done.stderr


def test_a_folder_that_does_not_exist_is_named_with_what_is_there(project, capsys):
    (project / "data/lq").rename(project / "data/input")
    assert index.main([]) == 1
    said = capsys.readouterr().err
    assert "index.datasets[toy].splits.train.lq: data/lq does not exist; data holds gt, input" in said


def test_an_unchanged_file_is_read_once(project, monkeypatch):
    assert index.main([]) == 0
    before = Path("index.parquet").read_bytes()
    changed = picture(project / "data/gt/2.png", 55)
    opened = []
    call = ImageWorkers.call
    monkeypatch.setattr(ImageWorkers, "call", lambda self, *asked: opened.append(asked[1]) or call(self, *asked))
    assert index.main([]) == 0
    assert opened == [["data/gt/2.png"]]
    assert rows()[2]["gt_sha256"] == hashlib.sha256(changed.read_bytes()).hexdigest()
    picture(changed, 2)
    assert index.main([]) == 0
    assert Path("index.parquet").read_bytes() == before, "equal data give equal bytes"


@pytest.mark.parametrize("way", ["written over", "renamed", "rehash"])
def test_another_picture_of_the_same_size_and_time_is_noticed(project, way):
    """As `cp -p` and `rsync -t` leave it, of formats that are not compressed."""
    old, new = (picture(project / f"{name}.bmp", seed) for seed, name in enumerate(["data/gt/0", "new"]))
    (project / "data/gt/0.png").unlink()
    os.utime(old, (1, 1))
    assert index.main([]) == 0
    wanted = hashlib.sha256(new.read_bytes()).hexdigest()
    if way == "rehash":  # a disk that lies about everything
        cache, path = ProbeCache(Path("cache.sqlite")), "data/gt/0.bmp"
        (known,) = cache.get([path], [stamp_of(path)])
        cache.put([(path, stamp_of(path), known._replace(sha256=wanted))])
        assert index.main([]) == 0 and rows()[0]["gt_sha256"] == wanted, "it came from the cache"
        wanted = hashlib.sha256(old.read_bytes()).hexdigest()
    elif way == "renamed":
        os.utime(new, (1, 1))
        new.rename(old)
    else:
        old.write_bytes(new.read_bytes())
        os.utime(old, (1, 1))
    assert index.main(["--rehash"] if way == "rehash" else []) == 0
    assert rows()[0]["gt_sha256"] == wanted


@pytest.fixture(scope="module")
def workers():
    with ImageWorkers(2, 60) as workers:
        yield workers


def test_bad_files_and_larger_limits_are_never_taken_from_the_cache(tmp_path, workers):
    good, bad = picture(tmp_path / "good.png", 1), tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    cache = ProbeCache(tmp_path / "cache.sqlite")
    paths = [str(good), str(bad)]
    first = list(probe_all(paths, cache, workers, 10**6))
    again = ProbeCache(tmp_path / "cache.sqlite")
    assert again.get(paths, [*map(stamp_of, paths)]) == [first[0], None]
    assert "more than 50 pixels; index.max_pixels = 50" in list(probe_all(paths, again, workers, 50))[0].error


def flipped(content: bytes) -> bytes:
    """Another hash of the first image, as a bad disk makes it."""
    known = hashlib.sha256(Path("data/gt/0.png").read_bytes()).hexdigest().encode()
    assert content.count(known) == 1
    return content.replace(known, (b"0" if known[:1] != b"0" else b"1") + known[1:])


@pytest.mark.parametrize("damage", [lambda _: b"garbage", flipped, lambda content: content[:5000], lambda _: b""])
def test_a_damaged_cache_is_made_again(project, damage):
    assert index.main([]) == 0
    cache, before = Path("cache.sqlite"), rows()
    cache.write_bytes(damage(cache.read_bytes()))
    assert index.main([]) == 0 and rows() == before
    path = "data/gt/0.png"
    assert index.main([]) == 0 and ProbeCache(cache).get([path], [stamp_of(path)])[0].sha256 == before[0]["gt_sha256"]


def test_a_cache_that_cannot_be_written_is_one_line(project, capsys):
    assert index.main(["--set", "paths.hash_cache=params.yaml/cache.sqlite"]) == 1
    assert capsys.readouterr().err.startswith("index: ")


def test_files_go_through_processes_in_order(tmp_path, workers):
    paths = [str(picture(tmp_path / f"{n:03}.png", n, (4 + n % 5, 4))) for n in range(70)]
    paths.insert(33, str(tmp_path / "absent.png"))
    found = list(probe_all(paths, ProbeCache(tmp_path / "c"), workers, 10**6))
    expected = [None if "absent" in p else hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths]
    assert [probe.sha256 for probe in found] == expected
    assert found[33].error == f"{paths[33]}: No such file or directory"


def test_a_file_that_hangs_costs_only_itself(tmp_path, monkeypatch):
    paths = [str(picture(tmp_path / f"{n}.png", n)) for n in range(5)]
    with ImageWorkers(2, 1.0) as workers:
        call = workers.call

        def hang(function, chunk, *rest):  # as a decoder in C would
            return call(time.sleep, 60) if paths[2] in chunk else call(function, chunk, *rest)

        monkeypatch.setattr(workers, "call", hang)
        found = list(probe_all(paths, ProbeCache(tmp_path / "c"), workers, 10**6))
    hung = f"{paths[2]}: took longer than 1 s to read and decode"
    assert [probe.error for probe in found] == [None, None, hung, None, None]


def test_an_unpaired_file_tells_both_ids_that_were_compared(project, capsys):
    """So that a template which is off by a letter is seen at once."""
    for file in Path("data/lq").iterdir():
        file.rename(file.with_name(f"rain-{file.name}"))
    assert index.main([]) == 1
    said = capsys.readouterr().err
    assert "data/lq/rain-2.png: no gt with this id 'rain-2'; the nearest there is '3'" in said
    assert "data/gt/0.png: no lq with this id '0'; the nearest there is 'rain-0'" in said


def test_a_name_that_does_not_fit_is_a_row(project, capsys):
    assert index.main(["--set", "index.datasets=[{name: x, domain: d, task: t, splits: {train: {gt: gt, lq: lq, "
                       "pair: {lq: 'rain-{id}'}}}}]"]) == 1  # fmt: skip
    assert "data/lq/0.png: its name does not fit the template 'rain-{id}'" in capsys.readouterr().err
