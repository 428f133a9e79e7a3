"""The tools that people already have read a release without any of our code."""

import duckdb
import numpy as np
import pandas
import polars
import pyarrow.dataset
import pytest
from shards_maker import expected, make_release, sha_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interop") / "caption_shards"
    make_release(folder, rows_per_group=7, part_bytes=4000)
    return folder


def test_datasets(folder, tmp_path):
    import datasets

    features = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert len(features) == 60
    row = features.filter(lambda row: row["image_sha256"] == sha_of(4))[0]
    assert np.abs(np.array(row["embedding"]) - expected(4)).max() < 1e-3
    assert [c["perspective"] for c in row["captions"]] == ["brightness", "content"]
    aliases = datasets.load_dataset(str(folder), "aliases", split="train", cache_dir=str(tmp_path))
    assert set(aliases["domain"]) == {"natural", "remote_sensing", "medical"}


def test_duckdb_finds_by_text_and_by_cosine(folder):
    found = duckdb.sql(
        f"""SELECT image_sha256 FROM '{folder}/features-*.parquet', UNNEST(captions) AS u(c)
            WHERE c.perspective = 'content' AND c.text LIKE '%building%'"""
    ).fetchall()
    assert {row[0] for row in found} == {sha_of(i) for i in range(60) if i % 3 == 1}
    nearest = duckdb.sql(
        f"""SELECT b.image_sha256, list_cosine_similarity(a.embedding, b.embedding) AS s
            FROM '{folder}/features-*.parquet' a, '{folder}/features-*.parquet' b
            WHERE a.image_sha256 = '{sha_of(2)}' ORDER BY s DESC LIMIT 5"""
    ).fetchall()
    truth = sorted(range(60), key=lambda i: -float(expected(2) @ expected(i)))[:5]
    assert [row[0] for row in nearest] == [sha_of(i) for i in truth] and nearest[0][1] == pytest.approx(1, abs=1e-3)


def test_polars(folder):
    table = polars.read_parquet(folder / "features-*.parquet")
    matrix = table["embedding"].to_numpy()
    at = table["image_sha256"].to_list().index(sha_of(8))
    assert matrix.shape == (60, 16) and np.abs(matrix[at] - expected(8)).max() < 1e-3
    texts = table.explode("captions").unnest("captions").filter(polars.col("perspective") == "content")["text"]
    assert texts.str.contains("brain").sum() == 20


def test_pandas(folder):
    parts = sorted(folder.glob("features-*.parquet"))
    table = pandas.concat([pandas.read_parquet(part) for part in parts]).set_index("image_sha256")
    assert table.index.is_monotonic_increasing and table.index.is_unique
    assert np.abs(table.loc[sha_of(8), "embedding"] - expected(8)).max() < 1e-3
    aliases = pandas.read_parquet(folder / "aliases.parquet")
    assert aliases.merge(table, on="image_sha256").groupby("domain").size().to_dict() == dict.fromkeys(
        ("medical", "natural", "remote_sensing"), 20
    )


def test_pyarrow_dataset(folder):
    files = [str(path) for path in sorted(folder.glob("features-*.parquet"))]
    dataset = pyarrow.dataset.dataset(files)
    row = dataset.to_table(filter=pyarrow.dataset.field("image_sha256") == sha_of(8)).to_pylist()[0]
    assert row["width"] == 18 and np.abs(np.array(row["embedding"]) - expected(8)).max() < 1e-3


def test_a_reader_from_the_format_page_alone(folder):
    """Vectors by nothing but JSON, numpy and the rules of shards/README.md."""
    import json

    manifest = json.loads((folder / "manifest.json").read_text())
    index = np.load(folder / "index.npy")
    wanted = np.frombuffer(bytes.fromhex(sha_of(33)), ">u8")
    row = int(np.flatnonzero((index == wanted[:, None]).all(axis=0))[0])
    for part in manifest["parts"]:
        if row < part["rows"]:
            break
        row -= part["rows"]
    group, within = divmod(row, manifest["group_rows"])
    at = part["vectors"]["embedding"][group] + within * 2 * manifest["dim"]
    vector = np.fromfile(folder / part["file"], "<f2", manifest["dim"], offset=at)
    assert np.abs(vector - expected(33)).max() < 1e-3
