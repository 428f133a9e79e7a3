"""`python -m pipeline.caption FOLDER OUT`: the captions of a folder of images, without index, pairs or params.yaml.

OUT/captions.csv    a line a file, one column a perspective       OUT/release/   the sealed release (shards/README.md)
OUT/index.html      the page to look through, with OUT/page/      OUT/stages/    parameters, index, caption store
"""

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
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
    stages = out / "stages"
    parameters = stages / "params.yaml"
    write_file(parameters, json.dumps(_parameters(folder, out, stages, args), indent=2))  # JSON is YAML
    root = Path(__file__).parents[2]  # this very code, whatever lies in the folder that one stands in
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    given = [word for override in args.overrides for word in ("--set", override)]
    asked = {"caption": ["--retry-errors"] * args.retry_errors + ["--plan"] * args.plan}
    for stage in ("index", "caption") if args.plan else ("index", "caption", "embed"):
        command = [sys.executable, "-P", "-m", f"pipeline.{stage}", "--params", str(parameters), *given]
        try:
            done = subprocess.run([*command, *asked.get(stage, [])], env=environment)
        except KeyboardInterrupt:
            raise SystemExit("caption: stopped; what is finished is kept, the same command goes on") from None
        if done.returncode:
            raise SystemExit(done.returncode)
    if args.plan:
        return "caption: nothing was captioned; without --plan it is"
    release, said = open_release(out / "release"), {}
    for batch in release.iter_batches(4096, ["image_sha256", "captions"]):
        for image in batch.to_pylist():
            said[image["image_sha256"]] = {c["perspective"]: c["text"] for c in image["captions"]}
    names = sorted(release.manifest["teacher"]["perspectives"])
    captions = {sha256: [of_image.get(name) or "" for name in names] for sha256, of_image in said.items()}
    files = sorted((row["path"], row["image_sha256"]) for row in release.aliases().to_pylist())
    lines = [["file", *names], *([path, *captions[sha256]] for path, sha256 in files)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([no_formula(cell) for cell in line] for line in lines)
    write_file(out / "captions.csv", table.getvalue())
    images = _images(release, captions, files, folder, out)
    data = json.dumps({"perspectives": names, "images": images}, ensure_ascii=True)
    write_file(out / "page/data.js", f"const DATA = {data};\n")
    write_file(out / "index.html", Path(__file__).with_name("gallery.html").read_text(encoding="utf-8"))
    return f"caption: {len(files)} files of {args.folder} → {args.out}/captions.csv, index.html, release/"


def _parameters(folder: Path, out: Path, stages: Path, args: argparse.Namespace) -> dict:
    paths = {name: str(stages / name) for name in ("samples", "student", "metrics", "evaluation", "report")}
    paths |= {"index": str(stages / "index.parquet"), "hash_cache": str(stages / "hash_cache.parquet")}
    paths |= {"caption_store": str(stages / "caption_store"), "caption_stats": str(stages / "caption_stats.json")}
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


def _images(
    release: Release, captions: dict[str, list[str]], files: list[tuple[str, str]], folder: Path, out: Path
) -> list[dict[str, Any]]:
    """What the page shows of each image of the release: where it lies, its captions, and its nearest neighbours."""
    shas = release.sha256s()
    paths = dict(reversed([(sha256, path) for path, sha256 in files]))  # of copies, the first
    unit = np.asarray(release.vectors(0, len(shas)), np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-12)
    images, count = [], min(NEAREST, len(shas) - 1)
    with progress("page", len(shas)) as advance:
        for start in range(0, len(shas), ROWS):
            similarity = unit[start : start + ROWS] @ unit.T
            itself = np.arange(len(similarity))
            similarity[itself, start + itself] = -np.inf
            near = np.argpartition(-similarity, count, axis=1)[:, :count]
            for sha256, others, alike in zip(shas[start : start + ROWS], near, similarity, strict=True):
                path, ordered = paths[sha256], others[np.argsort(-alike[others])]
                source = _source(folder / path, sha256, out)
                images.append({"path": path, "src": source, "captions": captions[sha256], "near": ordered.tolist()})
            advance(len(near))
    return images


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
