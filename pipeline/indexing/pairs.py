"""Files on disk → candidate pairs, by the rules of `index_config`. Opens no image."""

import csv
import io
import os
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from operator import itemgetter
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple, TextIO

from pipeline.indexing.config import DatasetSpec, IndexConfig, SplitSpec
from pipeline.indexing.folders import places, say_once, walk
from student.files import printable
from student.images.formats import DICOM, NIFTI, STILLS, UNSUPPORTED
from student.params import ParamsError
from student.places import entries, exists, is_folder, is_remote, join, read
from student.places.tars import COMPRESSED, members


class Candidate(NamedTuple):
    """A gt and its lq, or one of them with the reason why the other is not there."""

    gt: str | None
    lq: str | None
    status: str = "ok"
    error: str | None = None


def candidates(config: IndexConfig, dataset: DatasetSpec, split: str) -> Iterator[Candidate]:
    """All pairs of one split, sorted by path; raises `ParamsError` for a folder or list that cannot be read.

    A name that is no UTF-8 fits in no table, and one with control characters on no terminal: they are told in another
    spelling, as a fault.
    """
    for pair in _found(config, dataset, split):
        paths = [path and printable(path) for path in pair[:2]]
        if changed := [path for path, before in zip(paths, pair[:2], strict=True) if path != before]:
            fault = f"{changed[0]}: its name is not UTF-8, or holds control characters; rename it, e.g. with convmv"
            yield Candidate(paths[0], paths[1], "unreadable", fault)
        else:
            yield pair


def _found(config: IndexConfig, dataset: DatasetSpec, split: str) -> Iterator[Candidate]:
    root, spec, where = config.root, dataset.splits[split], f"index.datasets[{dataset.name}].splits.{split}"
    if spec.csv:
        yield from _from_csv(root, spec, where)
    elif spec.hf:
        from pipeline.indexing.hugging_face import extracted

        for gt, lq in extracted(spec.hf, root, Path(config.extracted) / dataset.name / split, where):
            yield Candidate(gt, lq)
    elif spec.source:
        try:
            source = resolve_name(spec.source)
            yield from (Candidate(gt, lq) for gt, lq in source(root if is_remote(root) else Path(root), **spec.options))
        except (ImportError, AttributeError, ValueError) as error:
            raise ParamsError(f"{where}.source: {spec.source}: {error}") from error
    else:
        yield from _from_folders(root, spec, where)


def _from_folders(root: str, spec: SplitSpec, where: str) -> Iterator[Candidate]:
    strangers = {}
    gts, strangers["gt"] = _keyed(root, spec, "gt", where)
    lqs, strangers["lq"] = ({}, []) if spec.degradation else _keyed(root, spec, "lq", where)
    # Where both sides lie in one folder, a file of the other side is no stranger.
    paired = (
        {path for side in (gts, lqs) for paths in side.values() for path in paths} if any(strangers.values()) else ()
    )
    for side, paths in strangers.items():
        for path in paths:
            if path not in paired:
                fault = f"{path}: its name does not fit the template {getattr(spec.pair, side)!r}"
                gt, lq = (path, None) if side == "gt" else (None, path)
                yield Candidate(gt, lq, "unpaired", fault)
    if spec.degradation:
        yield from (Candidate(path, None) for paths in gts.values() for path in paths)
        return
    alike = Counter(unicodedata.normalize("NFC", key) for key in gts.keys() ^ lqs.keys())
    ids = {"gt": sorted(gts), "lq": sorted(lqs)}
    for key in sorted(gts.keys() | lqs.keys()):
        twin = alike[unicodedata.normalize("NFC", key)] > 1
        hint = ", only one that is spelled alike in other Unicode (NFC and NFD); rename one" if twin else ""
        if bool(gts.get(key)) != bool(lqs.get(key)):
            hint = f" {key!r}{hint or _nearest(key, ids['lq' if key in gts else 'gt'])}"
        yield from _match(gts.get(key, []), lqs.get(key, []), hint)


def _nearest(key: str, ids: list[str]) -> str:
    """The other side's id next to `key`, for people to see what was compared."""
    if not ids:
        return ""
    place = bisect_left(ids, key)
    around = ids[max(place - 1, 0) : place + 1]
    return f"; the nearest there is {max(around, key=lambda other: len(os.path.commonprefix([key, other])))!r}"


def _match(gts: list[str], lqs: list[str], hint: str) -> Iterator[Candidate]:
    if len(gts) > 1:
        yield Candidate(gts[0], None, "ambiguous", f"{gts[0]}: {gts[1]} has the same id; an lq cannot choose")
    elif not gts:
        yield from (Candidate(None, lq, "unpaired", f"{lq}: no gt with this id{hint}") for lq in lqs)
    elif not lqs:
        yield Candidate(gts[0], None, "unpaired", f"{gts[0]}: no lq with this id{hint}")
    else:
        yield from (Candidate(gts[0], lq) for lq in lqs)


def _keyed(root: str, spec: SplitSpec, side: str, where: str) -> tuple[dict[str, list[str]], list[str]]:
    """Files of one side by their id, and those whose names do not fit the template."""
    keyed: dict[str, list[str]] = {}
    strangers = []
    patterns = getattr(spec, side)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        full = _below(root, pattern)
        found = places(root, pattern)
        if not found:
            raise ParamsError(f"{where}.{side}: {full} does not exist; {_remedy(root, pattern)}")
        for path, stem in (image for place in found for image in _images(place)):
            key = spec.pair.key(side, stem)
            if key is None:
                strangers.append(path)
            else:
                keyed.setdefault(key, []).append(path)
    if not keyed and not strangers:
        raise ParamsError(f"{where}.{side}: no image in {full}; images end in {' '.join(STILLS)}")
    return keyed, strangers


def _remedy(root: str, pattern: str) -> str:
    """What is there instead of a folder that is not."""
    if is_remote(pattern):
        return "check the address"
    folder = os.sep if os.path.isabs(pattern) else root
    try:
        for part in pattern.split("/"):
            if not exists(join(folder, part)):
                break
            folder = join(folder, part)
        names = sorted(name for found in entries(folder) for name in found if not name.startswith("."))
    except OSError:
        names = []
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{folder} holds {shown or 'nothing'}; check index.root and the name"


def _images(place: str) -> Iterator[tuple[str, str]]:
    """(path, stem relative to `place`) of every image file, sorted, hidden files left out; of a tar, its members."""
    if not is_folder(place):
        found = _in_tar(place) if place.lower().endswith((".tar", *COMPRESSED)) else [(place, os.path.basename(place))]
        for path, name in found:
            stem, extension = os.path.splitext(name)
            if extension.lower() in STILLS:
                yield path, stem
        return
    passed: Counter[str] = Counter()
    for folder, names in walk(place):
        relative = os.path.relpath(folder, place)
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in STILLS:
                yield join(folder, name), stem if relative == "." else f"{relative}/{stem}"
            elif name.lower().endswith((*UNSUPPORTED, *DICOM, *NIFTI, ".tar", *COMPRESSED)):
                passed[extension.lower()] += 1
    if passed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed.items()))
        remedy = "python -m pipeline.prepare slices reads DICOM and NIfTI, other programs write the others as PNG"
        if passed[".tar"]:
            remedy = f"name archives as {join(place, '*.tar')}; {remedy}"
        say_once(f"  {printable(place)}: passed over: {kinds}; {remedy}")


def _in_tar(place: str) -> list[tuple[str, str]]:
    try:
        return sorted(((str(found), found.name) for found in members(place)), key=itemgetter(1))
    except OSError as error:
        raise ParamsError(f"{printable(place)}: {error.strerror or error}") from None
    except ValueError as error:
        raise ParamsError(printable(str(error))) from None


def _from_csv(root: str, spec: SplitSpec, where: str) -> Iterator[Candidate]:
    file = _below(root, spec.csv)
    wanted = ["gt"] if spec.degradation else ["gt", "lq"]
    try:
        with _opened(file) as lines, ThreadPoolExecutor(16) as threads:
            table = csv.DictReader(lines)
            if missing := [name for name in wanted if name not in (table.fieldnames or [])]:
                raise ParamsError(f"{where}.csv: {file} has no column {', '.join(missing)}; its first line names them")
            while rows := list(islice(table, 1024)):
                paths = [_below(root, row[name] or "") for row in rows for name in wanted]
                there = list((threads.map if any(map(is_remote, paths)) else map)(_is_file, paths))
                for at in range(0, len(paths), len(wanted)):
                    pair = paths[at : at + len(wanted)]
                    absent = [path for path, found in zip(pair, there[at:], strict=False) if not found]
                    status = ("missing", f"{absent[0]}: listed in {file}, not on disk") if absent else ("ok", None)
                    yield Candidate(pair[0], pair[1] if len(pair) > 1 else None, *status)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ParamsError(f"{where}.csv: {file} cannot be read as CSV: {error}") from error


def _opened(file: str) -> TextIO:
    if is_remote(file):
        return io.StringIO(read(file).decode("utf-8-sig"), newline="")
    return open(file, newline="", encoding="utf-8-sig")


def _below(root: str, path: str) -> str:
    return path if is_remote(path) else join(root, path)


def _is_file(path: str) -> bool:
    return exists(path) if is_remote(path) else os.path.isfile(path)
