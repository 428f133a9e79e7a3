"""Files on disk → candidate pairs, by the rules of `index_config`. Opens no image."""

import csv
import os
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

from pipeline.indexing.config import DatasetSpec, IndexConfig, SplitSpec
from pipeline.indexing.folders import places, say_once, walk
from student.files import printable
from student.images.formats import DICOM, NIFTI, STILLS, UNSUPPORTED
from student.params import ParamsError


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
    root, spec, where = Path(config.root), dataset.splits[split], f"index.datasets[{dataset.name}].splits.{split}"
    if spec.csv:
        yield from _from_csv(root, spec, where)
    elif spec.hf:
        from pipeline.indexing.hugging_face import extracted

        for gt, lq in extracted(spec.hf, root, Path(config.extracted) / dataset.name / split, where):
            yield Candidate(gt, lq)
    elif spec.source:
        try:
            yield from (Candidate(gt, lq) for gt, lq in resolve_name(spec.source)(root, **spec.options))
        except (ImportError, AttributeError, ValueError) as error:
            raise ParamsError(f"{where}.source: {spec.source}: {error}") from error
    else:
        yield from _from_folders(root, spec, where)


def _from_folders(root: Path, spec: SplitSpec, where: str) -> Iterator[Candidate]:
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


def _keyed(root: Path, spec: SplitSpec, side: str, where: str) -> tuple[dict[str, list[str]], list[str]]:
    """Files of one side by their id, and those whose names do not fit the template."""
    keyed: dict[str, list[str]] = {}
    strangers = []
    patterns = getattr(spec, side)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        full = os.path.join(root, pattern)
        found = places(str(root), pattern)
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


def _remedy(root: Path, pattern: str) -> str:
    """What is there instead of a folder that is not."""
    folder = root
    for part in Path(pattern).parts:
        if not (folder / part).exists():
            break
        folder /= part
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        names = []
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{folder} holds {shown or 'nothing'}; check index.root and the name"


def _images(place: str) -> Iterator[tuple[str, str]]:
    """(path, stem relative to `place`) of every image file, sorted, hidden files left out."""
    if os.path.isfile(place):
        if os.path.splitext(place)[1].lower() in STILLS:
            yield place, Path(place).stem
        return
    passed: Counter[str] = Counter()
    for folder, names in walk(place):
        relative = os.path.relpath(folder, place)
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in STILLS:
                yield os.path.join(folder, name), stem if relative == "." else f"{relative}/{stem}"
            elif name.lower().endswith((*UNSUPPORTED, *DICOM, *NIFTI)):
                passed[extension.lower()] += 1
    if passed:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(passed.items()))
        remedy = "python -m pipeline.prepare slices reads DICOM and NIfTI, other programs write the others as PNG"
        say_once(f"  {printable(place)}: passed over: {kinds}; {remedy}")


def _from_csv(root: Path, spec: SplitSpec, where: str) -> Iterator[Candidate]:
    file = root / spec.csv
    wanted = ["gt"] if spec.degradation else ["gt", "lq"]
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines)
            if missing := [name for name in wanted if name not in (table.fieldnames or [])]:
                raise ParamsError(f"{where}.csv: {file} has no column {', '.join(missing)}; its first line names them")
            for row in table:
                paths = [os.path.join(root, row[name] or "") for name in wanted]
                absent = [path for path in paths if not os.path.isfile(path)]
                status = ("missing", f"{absent[0]}: listed in {file}, not on disk") if absent else ("ok", None)
                yield Candidate(paths[0], paths[1] if len(paths) > 1 else None, *status)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ParamsError(f"{where}.csv: {file} cannot be read as CSV: {error}") from error
