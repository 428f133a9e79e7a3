"""A path of this machine and an address of an object store answer alike."""

import pytest
from processes import ROOT, printed

from student import places
from student.files import NotWritten


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "folder")
    return places.join(request.getfixturevalue("bucket"), tmp_path.name)


def test_what_is_written_is_read_listed_and_removed(folder):
    file = places.join(folder, "below", "part-1.parquet")
    assert not places.exists(file) and places.listed(places.join(folder, "below")) == []
    places.write_whole(file, b"0123456789")
    places.write_whole(places.join(folder, "below", "note.txt"), "größer")
    places.write_whole(places.join(folder, "below", "deeper", "part-2.parquet"), b"")
    assert places.exists(file) and places.exists(places.join(folder, "below"))
    assert places.read(file) == b"0123456789" and places.read(file, 2, 5) == b"234" and places.read(file, 7) == b"789"
    assert places.read(places.join(folder, "below", "note.txt")).decode() == "größer"
    assert places.listed(places.join(folder, "below")) == ["note.txt", "part-1.parquet"]
    assert places.listed(places.join(folder, "below"), ".parquet") == ["part-1.parquet"]
    places.write_whole(file, b"new")
    assert places.read(file) == b"new"
    places.remove(file)
    places.remove(file)
    assert not places.exists(file)
    with pytest.raises(FileNotFoundError):
        places.read(file)


def test_what_cannot_be_written_is_named(tmp_path, bucket):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritten, match="file/below"):
        places.write_whole(tmp_path / "file" / "below", b"")
    with pytest.raises(NotWritten, match="s3://nobodys"):
        places.write_whole("s3://nobodys/file", b"")


def test_an_unknown_scheme_is_named_with_the_remedy():
    with pytest.raises(OSError, match="nowhere://x: .*pip install"):
        places.read("nowhere://x")


def test_two_processes_see_what_the_other_has_written(bucket):
    assert places.listed(f"{bucket}/shared") == []
    script = "from student import places; places.write_whole('s3://lab/shared/a', b'a')"
    printed(ROOT, "-c", script)
    assert places.listed(f"{bucket}/shared") == ["a"] and places.exists(f"{bucket}/shared/a")
