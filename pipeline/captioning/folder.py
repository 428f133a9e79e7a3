"""`python -m pipeline.caption FOLDER OUT`: the captions of a folder of images, without index, pairs or params.yaml.

FOLDER may be an address such as `s3://bucket/photos`.

OUT/captions.csv    a line a file, one column a perspective       OUT/release/   the sealed release (shards/README.md)
OUT/index.html      the page to look through, with OUT/page/      OUT/stages/    parameters, index, caption store
"""

import argparse
import csv
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.captioning.gallery import write_gallery
from pipeline.stopping import finish
from shards import open_release
from shards.reader import Release
from student.files import no_formula, publish, write_file
from student.params import ParamsError
from student.places import is_folder, is_remote


def caption_folder(args: argparse.Namespace) -> str:
    """Index, caption, embed, then the table and the page; returns the summary line. What exists is not done again.

    Raises `ParamsError` for what is asked; a stage that fails has said why, and ends the command with its exit code.
    """
    folder, out = args.folder, Path(args.out).resolve()
    if is_remote(args.out):
        raise ParamsError(f"{args.out}: OUT is a folder of this machine; copy it to the store afterwards")
    if not is_remote(folder):
        folder = str(Path(folder).resolve())
    try:
        there = is_folder(folder)
    except OSError as error:
        raise ParamsError(f"{folder}: {error.strerror}") from None
    if not there:
        raise ParamsError(f"{args.folder}: no such folder; name one with images, and a folder for the captions")
    if str(out) == folder or Path(folder) in out.parents:
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
            code = finish([*command, *asked.get(stage, [])], environment).returncode
        except KeyboardInterrupt:
            raise SystemExit("caption: stopped; what is finished is kept, the same command resumes") from None
        if code:
            raise SystemExit(code)
    if args.plan:
        return "caption: nothing was captioned; without --plan it is"
    release = open_release(out / "release")
    names = sorted(release.manifest["teacher"]["perspectives"])
    texts, files = _texts(release, names), _files(release)
    _write_table(out / "captions.csv", names, texts, files)
    told = write_gallery(out, folder, release, names, texts, files)
    return f"caption: {len(files)} files of {args.folder} → {args.out}/captions.csv, index.html, release/{told}"


def _texts(release: Release, names: list[str]) -> pa.Table:
    """The captions in the order of the release's rows, a column a perspective; "" where there is none."""
    batches = []
    for batch in release.iter_batches(4096, ["captions"]):
        said = [{c["perspective"]: c["text"] for c in captions} for captions in batch.column("captions").to_pylist()]
        columns = [pa.array([of_image.get(name, "") for of_image in said], pa.string()) for name in names]
        batches.append(pa.record_batch(columns, names))
    return pa.Table.from_batches(batches)


def _files(release: Release) -> pa.Table:
    """`path` of every file, sorted, and the `row` of its image."""
    files = release.aliases().sort_by([("path", "ascending"), ("image_sha256", "ascending")])
    rows = release.lookup_rows(files["image_sha256"])[0]
    return pa.table({"path": files["path"], "row": rows})


def _write_table(file: Path, names: list[str], texts: pa.Table, files: pa.Table) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            writer.writerow([no_formula(cell) for cell in ["file", *names]])
            for some in files.to_batches(4096):
                said = texts.take(some["row"]).to_pydict()
                for line in zip(some["path"].to_pylist(), *said.values(), strict=True):
                    writer.writerow([no_formula(cell) for cell in line])
        publish(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _parameters(folder: str, out: Path, stages: Path, args: argparse.Namespace) -> dict:
    paths = {name: str(stages / name) for name in ("samples", "student", "metrics", "evaluation", "report")}
    paths |= {"index": str(stages / "index.parquet"), "hash_cache": str(stages / "hash_cache.sqlite")}
    paths |= {"caption_store": str(stages / "caption_store"), "caption_stats": str(stages / "caption_stats.json")}
    split = {"gt": ".", "degradation": {"kind": "identity"}}
    data = {"name": "folder", "domain": "images", "task": "captions", "splits": {"train": split}}
    asked = {key: value for key in ("teacher", "model") if (value := getattr(args, key))}
    if args.questions:
        asked["perspectives"] = _questions(Path(args.questions))
    return {
        "paths": paths | {"release": str(out / "release")},
        "index": {"root": folder, "max_bad_fraction": 1.0, "datasets": [data]},
        "caption": asked,
    }


def _questions(file: Path) -> dict[str, str]:
    try:
        questions = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError) as error:
        raise ParamsError(f"--questions {file}: {' '.join(str(error).split())}") from error
    if not isinstance(questions, dict) or not all(isinstance(text, str) for text in questions.values()):
        raise ParamsError(f"--questions {file}: must hold lines such as `mood: What is the mood of this image?`")
    return questions
