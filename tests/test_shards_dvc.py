"""Another project imports the release with DVC at a tag, reads it with numpy and pyarrow, and follows an update."""

import os
import subprocess
import sys
from pathlib import Path

from shards_maker import make_release, sha_of
from test_shards_loader import light_world

from shards import open_release

READ = (
    "import sys; sys.path.insert(0, sys.argv[1])\n"
    "from shards import open_release\n"
    "release = open_release(sys.argv[2], strict=True)\n"
    "print(len(release), *release.lookup(sys.argv[3:])[1])"
)


def call(folder: Path, *command: str) -> str:
    environment = {
        **os.environ,
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(folder.parent / "site"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "a@b.example" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


def dvc(folder: Path, *command: str) -> str:
    return call(folder, sys.executable, "-m", "dvc", "-q", *command)


def repository(folder: Path) -> Path:
    folder.mkdir()
    call(folder, "git", "init", "-q", "-b", "main")
    dvc(folder, "init")
    return folder


def publish(folder: Path, tag: str) -> None:
    dvc(folder, "add", "caption_shards")
    call(folder, "git", "add", "caption_shards.dvc", ".gitignore", ".dvc/config")
    call(folder, "git", "commit", "-q", "-m", tag)
    call(folder, "git", "tag", tag)


def test_a_second_repository_imports_and_updates(tmp_path):
    ours, theirs = repository(tmp_path / "ours"), repository(tmp_path / "theirs")
    make_release(ours / "caption_shards", 0, 60)
    publish(ours, "v1")
    dvc(theirs, "import", str(ours), "caption_shards", "--rev", "v1")
    world = light_world(tmp_path)

    def read() -> list[str]:
        images = [sha_of(5), sha_of(70)]
        command = [sys.executable, "-I", "-S", "-c", READ, str(world), "caption_shards", *images]
        return call(theirs, *command).split()

    assert read() == ["60", "True", "False"]
    make_release(ours / "caption_shards", 0, 90)  # swapped in over links into the cache, which must stay whole
    publish(ours, "v2")
    dvc(theirs, "update", "--rev", "v2", "caption_shards.dvc")
    assert read() == ["90", "True", "True"]

    entries = sorted((ours / ".dvc" / "cache" / "files" / "md5").rglob("*.dir"), key=lambda path: path.stat().st_size)
    sizes = {len(open_release(entry, strict=True)) for entry in entries}
    assert sizes == {60, 90}  # both revisions, straight from the cache
