"""Other sources of pairs than two folders: globs, lists, tables; odd files; and what `--check` says."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from picture_files import picture
from PIL import Image
from ruamel.yaml import YAML

from pipeline import index
from pipeline.indexing.probe import probe


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(splits, *arguments) -> (exit code, rows)` on one data set below `data/`."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()

    def call(splits: dict, *arguments: str):
        entry = {"name": "x", "domain": "d", "task": "t", "splits": splits}
        section = {"root": "data", "datasets": [entry], "extracted": "extracted"}
        paths = {"index": "index.parquet", "hash_cache": "cache.sqlite"}
        Path("params.yaml").write_text(json.dumps({"paths": paths, "index": section}))
        code = index.main(list(arguments))
        return code, pq.read_table("index.parquet").to_pylist() if Path("index.parquet").exists() else []

    return call


def test_many_inputs_share_a_clean_image(run):
    for number in range(2):
        picture(Path(f"data/clear/{number:04}.png"), number)
        for part, strength in (("part1", "0.8_0.1"), ("part2", "1_0.2")):
            picture(Path(f"data/haze/{part}/{number:04}_{strength}.png"), 50 + number)
    rule = {"lq": "{id}_{beta}_{light}"}
    code, rows = run({"train": {"gt": "clear", "lq": "haze/part*", "pair": rule}})
    assert code == 0 and len(rows) == 4 and len({row["gt_sha256"] for row in rows}) == 2


def test_both_sides_in_one_tree(run):
    for scene in ("G1", "G2"):
        for number in (1, 2):
            picture(Path(f"data/train/{scene}/sharp/{number}.png"), number)
            picture(Path(f"data/train/{scene}/blur/{number}.png"), number + 5)
    rule = {"lq": "{scene}/blur/{id}", "gt": "{scene}/sharp/{id}"}
    code, rows = run({"train": {"gt": "train", "lq": "train", "pair": rule}})
    assert code == 0 and len(rows) == 4
    assert all(row["lq_path"] == row["gt_path"].replace("sharp", "blur") for row in rows)


def test_clean_images_with_a_degradation(run):
    for folder, number in (("a", 1), ("b/deep", 2)):
        picture(Path(f"data/{folder}/{number}.png"), number)
    Path("data/a/notes.txt").write_text("no image")
    picture(Path("data/a/.hidden.png"), 9)
    code, rows = run({"train": {"gt": ["a", "b"], "degradation": {"kind": "gaussian_noise", "sigma": 15}}})
    assert code == 0 and [row["gt_path"] for row in rows] == ["data/a/1.png", "data/b/deep/2.png"]
    assert all(row["lq_path"] is None for row in rows)
    assert json.loads(rows[0]["degradation"])["sigma"] == 15


def test_a_list_names_pairs_and_missing_files(run, capsys):
    picture(Path("data/a.png"), 1)
    picture(Path("data/b.png"), 2)
    Path("data/pairs.csv").write_text("gt,lq\na.png,b.png\na.png,gone.png\n")
    code, _ = run({"train": {"csv": "pairs.csv"}})
    assert code == 1 and "data/gone.png: listed in data/pairs.csv, not on disk" in capsys.readouterr().err
    code, rows = run({"train": {"csv": "pairs.csv"}}, "--set", "index.max_bad_fraction=0.5")
    assert code == 0 and [row["status"] for row in rows] == ["ok", "missing"]
    Path("data/pairs.csv").write_text("clean,lq\n")
    assert run({"train": {"csv": "pairs.csv"}})[0] == 1 and "has no column gt" in capsys.readouterr().err


def png(seed: int, mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_tables_become_files_with_the_very_bytes(run, kind):
    import datasets

    clean, noisy = [png(n) for n in range(3)], [png(n + 9) for n in range(3)]
    columns = {
        "sharp": [{"bytes": b, "path": None} for b in clean],
        "blur": [{"bytes": b, "path": None} for b in noisy],
    }
    features = datasets.Features({"sharp": datasets.Image(), "blur": datasets.Image()})
    table = datasets.Dataset.from_dict(columns, features=features)
    if kind == "disk":
        table.save_to_disk("data/table")
        source = {"path": "table"}
    else:
        table.to_parquet("data/table.parquet")
        source = {"path": "parquet", "data_files": "table.parquet"}
    splits = {"train": {"hf": source | {"gt": "sharp", "lq": "blur"}}}
    code, rows = run(splits)
    assert code == 0
    assert [Path(row["gt_path"]).read_bytes() for row in rows] == clean
    assert [Path(row["lq_path"]).read_bytes() for row in rows] == noisy
    stamps = [Path(row["gt_path"]).stat().st_mtime_ns for row in rows]
    assert run(splits)[1] == rows and [Path(row["gt_path"]).stat().st_mtime_ns for row in rows] == stamps


def test_an_imagefolder_stays_where_it_is(run):
    picture(Path("data/folder/a.png"), 1)
    code, rows = run({"train": {"hf": {"path": "imagefolder", "data_dir": "folder"}, "degradation": {"kind": "rain"}}})
    assert code == 0 and rows[0]["gt_path"].endswith("data/folder/a.png") and not Path("extracted/x/train/gt").exists()


def test_a_table_without_the_column_or_the_data_is_an_error(run, capsys):
    picture(Path("data/folder/a.png"), 1)
    source = {"path": "imagefolder", "data_dir": "folder", "gt": "sharp"}
    assert run({"train": {"hf": source, "degradation": {"kind": "rain"}}})[0] == 1
    assert "no column 'sharp'; it has image" in capsys.readouterr().err
    assert run({"train": {"hf": source | {"data_dir": "nowhere"}, "degradation": {"kind": "rain"}}})[0] == 1
    assert "cannot be loaded" in capsys.readouterr().err


def test_sizes_are_upright_and_depths_are_true(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "gray16.png")
    Image.new("L", (5, 4)).save(tmp_path / "gray.png")
    turned, deep, gray = (probe(str(tmp_path / n), 10**6) for n in ("turned.jpg", "gray16.png", "gray.png"))
    assert (turned.width, turned.height) == (10, 20)
    assert deep.mode == "I;16" and gray.mode == "L"


def test_check_finds_a_planted_fault_of_each_kind_and_writes_no_index(run, capsys):
    for number in range(8):
        picture(Path(f"data/train/gt/{number}.png"), number)
        picture(Path(f"data/train/lq/{number}.png"), number + 20)
    splits = {"train": {"gt": "train/gt", "lq": "train/lq"}, "test": {"gt": "test/gt", "lq": "test/lq"}}
    picture(Path("data/test/gt/1.png"), 3)  # leaked: train's 3.png under another name
    picture(Path("data/test/lq/1.png"), 60)
    code, _ = run(splits, "--check")
    out = capsys.readouterr().out
    assert code == 0 and "1 leaked clean images, 0 alike; ready" in out
    assert "x train: data/train/gt/3.png; x test: data/test/gt/1.png" in out

    Path("data/train/gt/0.png").unlink()
    Path("data/train/lq/1.png").unlink()
    picture(Path("data/train/lq/2.png"), 3, (5, 5))
    Image.fromarray(np.zeros((10, 12), np.uint16)).save("data/train/lq/4.png")
    Image.new("L", (12, 10)).save("data/train/lq/5.png")
    Path("data/train/gt/6.png").write_bytes(b"")
    code, _ = run(splits, "--check")
    out = " ".join(capsys.readouterr().out.split())
    assert code == 1 and not Path("index.parquet").exists()
    for finding in (
        "2 unpaired", "1 size_mismatch", "1 unreadable", "1 depth_mismatch", "1 colour_mismatch",
        "data/train/lq/4.png: 16 bits (I;16), its gt 8 (RGB)", "data/train/lq/5.png: L, its gt RGB",
        "data/train/gt/6.png: 0 bytes", "5x5, its gt has 12x10", "the stage would FAIL",
    ):  # fmt: skip
        assert finding in out, finding


def test_the_same_picture_saved_anew_or_cropped_is_told(run, capsys):
    from skimage import data

    pictures = {
        name: Image.fromarray(getattr(data, name)()).convert("RGB") for name in ("astronaut", "coffee", "cat", "rocket")
    }
    for name in ("astronaut", "coffee", "cat"):
        Path("data/train").mkdir(parents=True, exist_ok=True)
        pictures[name].save(f"data/train/{name}.png")
    Path("data/test").mkdir()
    pictures["astronaut"].save("data/test/a.jpg", quality=60)
    pictures["coffee"].crop((101, 53, 481, 353)).save("data/test/c.jpg", quality=85)
    pictures["rocket"].save("data/test/r.png")
    splits = {split: {"gt": split, "degradation": {"kind": "identity"}} for split in ("train", "test")}
    assert run(splits, "--check")[0] == 0
    out = capsys.readouterr().out
    assert "0 leaked clean images, 2 alike; ready" in out
    for train, test in (("astronaut.png", "a.jpg"), ("coffee.png", "c.jpg")):
        assert f"x train: data/train/{train}; x test: data/test/{test}" in out
    assert run(splits)[0] == 0, "and the index is what it is without them"


def test_everything_that_fits_no_data_is_said_at_once_and_can_be_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        picture(Path(f"data/there/{number}.png"), number)
    Path("data/there/broken.png").write_bytes(b"no image")
    splits = {name: {"train": {"gt": name, "degradation": {"kind": "identity"}}} for name in ("there", "gone", "lost")}
    data = [{"name": name, "domain": "d", "task": "t", "splits": split} for name, split in splits.items()]
    paths = {"index": "index.parquet", "hash_cache": "cache.sqlite"}
    params = {"paths": paths, "index": {"root": "data", "datasets": data}, "train": {"dataset_weights": {"theer": 2}}}
    params["model"] = {"domain_pool": False}
    Path("params.yaml").write_text(json.dumps(params))
    said = ("data/gone does not exist", "data/lost does not exist", "names 'theer', no data set")
    said += ("train.losses.align: these losses need model.domain_pool",)
    for arguments in ((), ("--check",)):
        assert index.main(list(arguments)) == 1 and not Path("index.parquet").exists()
        printed = "".join(capsys.readouterr())
        assert all(words in " ".join(printed.split()) for words in said), printed
    assert "these need 0.25" in printed, "of the four images there one is broken"
    assert index.main(["--skip-missing"]) == 1, "a weight that no data set bears is a mistake, present or not"
    assert "names 'theer'" in "".join(capsys.readouterr())
    params["train"]["dataset_weights"] = {"there": 2, "gone": 3}
    params["model"]["domain_pool"] = True
    Path("params.yaml").write_text(json.dumps(params))
    assert index.main(["--skip-missing"]) == 1
    assert "allow them with --set index.max_bad_fraction=0.25" in "".join(capsys.readouterr())
    assert index.main(["--skip-missing", "--set", "index.max_bad_fraction=0.25"]) == 0
    assert len(pq.read_table("index.parquet").filter(pc.field("status") == "ok")) == 3


def test_dvc_repro_sees_images_behind_links_and_in_absolute_folders(tmp_path, monkeypatch):
    root, (linked, absolute) = Path(__file__).parents[1], (tmp_path / name for name in ("linked", "absolute"))
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / "data/gt").symlink_to(linked, target_is_directory=True)
    for number, folder in enumerate((linked, absolute)):
        picture(folder / "0.png", number)
    splits = [{"train": {"gt": gt, "degradation": {"kind": "identity"}}} for gt in ("gt", str(absolute))]
    data = [{"name": f"d{i}", "domain": "d", "task": "t", "splits": split} for i, split in enumerate(splits)]
    stages = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stage = {**stages["index"], "deps": ["data"], "outs": ["index.parquet"]}
    later = {"cmd": "cat index.parquet | wc -c >> later.txt", "deps": ["index.parquet"]}
    (project / "dvc.yaml").write_text(json.dumps({"stages": {"index": stage, "later": later}}))
    paths = {"index": "index.parquet", "hash_cache": "cache.sqlite"}
    (project / "params.yaml").write_text(json.dumps({"paths": paths, "index": {"root": "data", "datasets": data}}))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(root)}

    def repro(*arguments: str) -> tuple[int, int]:
        """Pairs in the index, and how often the later stage ran."""
        command = ["dvc", *(arguments or ("repro",))]
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        index_file, runs = project / "index.parquet", project / "later.txt"
        return (len(pq.read_table(index_file)), len(runs.read_text().split())) if index_file.exists() else (0, 0)

    repro("init", "-q", "--no-scm")
    assert repro() == (2, 1)
    assert repro() == (2, 1), "the same index: nothing later runs"
    picture(linked / "1.png", 5)
    assert repro("repro", "--downstream", "later") == (2, 1), "data that is said to stand still"
    picture(absolute / "1.png", 6)
    assert repro() == (4, 2)
