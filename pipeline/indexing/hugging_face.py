"""Hugging Face `datasets` as a source: images that are files stay where they are, images in tables become files."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.indexing.config import HuggingFace
from student.params import ParamsError
from student.places import exists, is_folder, is_remote, join

_SUFFIX = {"JPEG": ".jpg", "TIFF": ".tif"}


def extracted(source: HuggingFace, root: str, folder: Path, where: str) -> Iterator[tuple[str, str | None]]:
    """(gt, lq) paths of every row. Raises `ParamsError` if the data set cannot be loaded or lacks a column.

    Files below `folder` are named by row number and hold the very bytes of the table; what is there is not written
    again while the data set's fingerprint is the same.
    """
    table = _load(source, root, where)
    columns = [source.gt] + ([source.lq] if source.lq else [])
    if absent := [name for name in columns if name not in table.column_names]:
        raise ParamsError(f"{where}.hf: no column {absent[0]!r}; it has {', '.join(table.column_names)}")
    from datasets import Image

    for name in columns:
        table = table.cast_column(name, Image(decode=False))
    marker = folder / "fingerprint"
    complete = marker.is_file() and marker.read_text(encoding="utf-8") == table._fingerprint
    for number, row in enumerate(table.select_columns(columns)):
        pair = [
            _as_file(row[name], folder / side / f"{number:07d}", complete)
            for side, name in zip(("gt", "lq"), columns, strict=False)
        ]
        yield pair[0], pair[1] if source.lq else None
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text(table._fingerprint, encoding="utf-8")


def _load(source: HuggingFace, root: str, where: str):
    import datasets

    def below(path: str) -> str:
        return path if is_remote(path) else join(root, path)

    files = [source.data_files] if isinstance(source.data_files, str) else source.data_files
    try:
        folder = below(source.path)
        if exists(join(folder, "state.json")):
            return datasets.load_from_disk(folder)
        return datasets.load_dataset(
            folder if is_folder(folder) else source.path,
            source.name,
            revision=source.revision,
            split=source.split,
            data_dir=below(source.data_dir) if source.data_dir else None,
            data_files=[below(file) for file in files] if files else None,
        )
    except Exception as error:  # the loader raises whatever its builder, file system or network raises
        reason = " ".join(str(error).split())[:300]
        raise ParamsError(f"{where}.hf: {source.path} cannot be loaded: {reason}") from error


def _as_file(image: dict | None, stem: Path, complete: bool) -> str:
    """The path of an undecoded image; a missing one becomes an empty file, which the index then names."""
    image = image or {"bytes": b"", "path": None}
    if image["bytes"] is None:
        return image["path"]
    file = stem.with_suffix(_suffix(image["bytes"]))
    if not (complete and file.is_file()):
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_bytes(image["bytes"])
        os.replace(temporary, file)
    return str(file)


def _suffix(content: bytes) -> str:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return _SUFFIX.get(image.format, f".{image.format.lower()}")
    except OSError:
        return ".png"
