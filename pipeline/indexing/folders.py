"""What lies below a folder of data: complete, or an error; never less than is there, and no picture twice by a loop."""

import os
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache

from student.files import printable
from student.images.formats import is_hidden
from student.params import ParamsError
from student.places import Stamp, below, entries, exists, is_folder, is_remote, join

stamps: dict[str, Stamp | None] = {}
"""Of the objects that were listed last, so that nobody asks for each once more."""


def places(root: str, pattern: str) -> list[str]:
    """Folders and files that `pattern` names below `root`, sorted; what exists is taken as it is, brackets and all.

    Elsewhere `*`, `?` and `[...]` stand for a part of a name and `**` for any folders. Raises `ParamsError` for a
    folder that cannot be listed.
    """
    if is_remote(pattern):
        scheme, _, rest = pattern.partition("://")
        bucket, _, pattern = rest.partition("/")
        root = f"{scheme}://{bucket}"
    elif os.path.isabs(pattern):
        root, pattern = os.path.abspath(os.sep), pattern.lstrip(os.sep)
    return sorted(set(_expand(root, [part for part in pattern.split("/") if part not in ("", ".")])))


def _expand(folder: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        yield folder
    elif _there(join(folder, parts[0])):
        yield from _expand(join(folder, parts[0]), parts[1:])
    elif parts[0] == "**":
        for below, _ in walk(folder):
            yield from _expand(below, parts[1:])
    elif _asked(folder, is_folder):
        for name in _listed(folder):
            if fnmatchcase(name, parts[0]) and name[0] != ".":
                yield from _expand(join(folder, name), parts[1:])


def _there(place: str) -> bool:
    return _asked(place, exists if is_remote(place) else os.path.lexists)


def _asked(place: str, question: Callable[[str], bool]) -> bool:
    try:
        return question(place)
    except OSError as error:
        raise ParamsError(f"{printable(place)}: {error.strerror}") from None


def walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its files) of `folder` and everything below, sorted, links followed, hidden things left out.

    A link to a folder that it lies in itself would go round for ever, so it is passed over, and said. Raises
    `ParamsError` for a folder that cannot be listed: a data set would be smaller than everybody believes.
    """
    if is_remote(folder):
        yield from _walk_objects(folder)
        return
    names = [name for name in _listed(folder) if not is_hidden(name)]
    folders = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    yield folder, sorted(set(names) - set(folders))
    above = (*above, os.path.realpath(folder))
    for path in (os.path.join(folder, name) for name in folders):
        real = os.path.realpath(path)
        if os.path.islink(path) and any(os.path.join(one, "").startswith(os.path.join(real, "")) for one in above):
            say_once(f"  {printable(path)}: passed over: a link to a folder that it lies in")
        else:
            yield from walk(path, above)


def _walk_objects(folder: str) -> Iterator[tuple[str, list[str]]]:
    """The same of an address, in the same order."""
    try:
        found = below(folder)
    except OSError as error:
        raise ParamsError(f"{folder}: cannot be listed: {error.strerror}") from None
    tree: dict[tuple[str, ...], list[str]] = {(): []}
    for name, stamp in found.items():
        *above, name_in = name.split("/")
        if name_in and not any(map(is_hidden, name.split("/"))):
            tree.setdefault(tuple(above), []).append(name_in)
            stamps[join(folder, name)] = stamp
    for above in sorted(tree):
        yield join(folder, *above), sorted(tree[above])


def _listed(folder: str) -> list[str]:
    try:
        if is_remote(folder):
            return sorted(name for names in entries(folder) for name in names)
        names = sorted(os.listdir(folder))
        os.stat(os.path.join(folder, "."))  # a folder may show names and not let anybody in
        return names
    except OSError as error:
        remedy = "allow it to be read, or name the folders beside it instead of the one above"
        raise ParamsError(f"{printable(folder)}: cannot be listed: {error.strerror}; {remedy}") from None


@lru_cache
def say_once(text: str) -> None:  # folders are listed twice: to count, and to read
    print(text, file=sys.stderr)
