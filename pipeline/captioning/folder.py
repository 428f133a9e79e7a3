"""`python -m pipeline.caption FOLDER OUT`: the captions of a folder of images, without index, pairs or params.yaml.

OUT/captions.csv    a line a file, one column a perspective       OUT/release/   the sealed release (shards/README.md)
OUT/index.html      the page to look through, with OUT/page/      OUT/work/      parameters, index, caption store
"""

import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
from ruamel.yaml import YAML

from shards import open_release
from shards.reader import Release
from student.files import no_formula, write_file
from student.images.files import read_8_bit
from student.images.picture import ImageFileError
from student.params import ParamsError
from student.progress import progress

NEAREST = 8
ROWS = 256
"""Images whose similarity to all others is in memory at once."""
SHOWN_BY_BROWSERS = {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".webp", ".avif", ".bmp"}


def caption_folder(args: argparse.Namespace) -> str:
    """Index, caption, embed, then the table and the page; returns the summary line. What exists is not done again.

    Raises `ParamsError` for what is asked; a stage that fails has said why, and ends the command with its exit code.
    """
    folder, out = Path(args.folder).resolve(), Path(args.out).resolve()
    if not folder.is_dir():
        raise ParamsError(f"{args.folder}: no such folder; name one with images, and a folder for the captions")
    if out == folder or folder in out.parents:
        raise ParamsError(f"{args.out}: lies in {args.folder}, whose images are captioned; name a folder elsewhere")
    work = out / "work"
    parameters = work / "params.yaml"
    write_file(parameters, json.dumps(_parameters(folder, out, work, args), indent=2))  # JSON is YAML
    root = Path(__file__).parents[2]  # this very code, whatever lies in the folder that one stands in
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    given = [word for override in args.overrides for word in ("--set", override)]
    retry = ["--retry-errors"] * args.retry_errors
    for stage in ("index", "caption", "embed"):
        command = [sys.executable, "-P", "-m", f"pipeline.{stage}", "--params", str(parameters), *given]
        done = subprocess.run([*command, *(retry if stage == "caption" else ())], env=environment)
        if done.returncode:
            raise SystemExit(done.returncode)
    release = open_release(out / "release")
    files = sorted((row["path"], row["image_sha256"]) for row in release.aliases().to_pylist())
    write_table(release, files, out / "captions.csv")
    write_page(release, files, folder, out)
    return f"caption: {len(files)} files of {args.folder} → {args.out}/captions.csv, index.html, release/"


def _parameters(folder: Path, out: Path, work: Path, args: argparse.Namespace) -> dict:
    paths = {name: str(work / name) for name in ("samples", "student", "metrics", "evaluation", "report")}
    paths |= {"index": str(work / "index.parquet"), "hash_cache": str(work / "hash_cache.parquet")}
    paths |= {"caption_store": str(work / "caption_store"), "caption_stats": str(work / "caption_stats.json")}
    split = {"gt": ".", "degradation": {"kind": "identity"}}
    data = {"name": "folder", "domain": "images", "task": "captions", "splits": {"train": split}}
    asked = {key: value for key in ("teacher", "model") if (value := getattr(args, key))}
    if args.questions:
        asked["perspectives"] = _questions(Path(args.questions))
    return {
        "paths": paths | {"release": str(out / "release")},
        "index": {"root": str(folder), "max_bad_fraction": 1.0, "datasets": [data]},
        "caption": asked,
    }


def _questions(file: Path) -> dict[str, str]:
    try:
        questions = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParamsError(f"--questions {file}: {' '.join(str(error).split())}") from error
    if not isinstance(questions, dict) or not all(isinstance(text, str) for text in questions.values()):
        raise ParamsError(f"--questions {file}: must hold lines such as `mood: What is the mood of this image?`")
    return questions


def write_table(release: Release, files: list[tuple[str, str]], table: Path) -> None:
    """One line a file: its path below the folder, and each perspective's caption (empty where there is none)."""
    names = perspectives_of(release)
    temporary = table.with_suffix(".part")
    with open(temporary, "w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["file", *names])
        for path, sha256 in files:
            captions = release.captions(sha256)
            writer.writerow(map(no_formula, [path, *(captions.get(name) or "" for name in names)]))
    os.replace(temporary, table)


def perspectives_of(release: Release) -> list[str]:
    return sorted(release.manifest["teacher"]["perspectives"])


def write_page(release: Release, files: list[tuple[str, str]], folder: Path, out: Path) -> None:
    """index.html and page/data.js; pictures that browsers do not show get a small JPEG in page/."""
    names, shas = perspectives_of(release), release.sha256s()
    first: dict[str, str] = {}
    for path, sha256 in files:
        first.setdefault(sha256, path)
    unit = np.asarray(release.vectors(0, len(release)), np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-12)
    images, count = [], min(NEAREST, len(shas) - 1)
    with progress("page", len(shas)) as advance:
        for start in range(0, len(shas), ROWS):
            similarity = unit[start : start + ROWS] @ unit.T
            similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))] = -np.inf  # itself
            near = np.argpartition(-similarity, count - 1, axis=1)[:, :count] if count else np.empty((ROWS, 0), int)
            for row, (sha256, others) in enumerate(zip(shas[start : start + ROWS], near, strict=False)):
                captions = release.captions(sha256)
                images.append(
                    {
                        "path": first[sha256],
                        "src": _source(folder / first[sha256], sha256, out),
                        "captions": [captions.get(name) or "" for name in names],
                        "near": sorted(map(int, others), key=lambda other, row=row: -similarity[row, other]),
                    }
                )
            advance(len(near))
    data = json.dumps({"perspectives": names, "images": images}, ensure_ascii=True)
    write_file(out / "page/data.js", f"const DATA = {data};\n")
    write_file(out / "index.html", Path(__file__).with_name("gallery.html").read_text(encoding="utf-8"))


def _source(file: Path, sha256: str, out: Path) -> str:
    """What `<img>` loads: the file itself by a relative path, or a small JPEG of it."""
    if file.suffix.lower() in SHOWN_BY_BROWSERS:
        return quote(os.path.relpath(file, out).replace(os.sep, "/"))
    small = out / "page" / f"{sha256}.jpg"
    if not small.exists():
        try:
            picture = read_8_bit(file.read_bytes())
        except (OSError, ImageFileError):
            return ""
        picture.thumbnail((400, 400))
        small.parent.mkdir(parents=True, exist_ok=True)
        picture.save(small, "JPEG", quality=85)
    return f"page/{small.name}"
