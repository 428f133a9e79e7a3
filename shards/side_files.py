"""The files beside the features: index.npy and aliases.parquet, written as rows come, and the card with its numbers."""

from __future__ import annotations

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.arrays import find, words_of
from shards.rows import alias_tables, regroup
from shards.schema import ALIAS_SCHEMA, ALIASES, canonical_json

_ROWS = 65536


def with_footer(schema: pa.Schema, identity: dict) -> pa.Schema:
    text = {f"teachonce.{k}": v if isinstance(v, str) else canonical_json(v).decode() for k, v in identity.items()}
    return schema.with_metadata(text)


class IndexFile:
    """index.npy under construction: the words of all rows, then row by row of the file, never all in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.rows = path, tempfile.TemporaryFile(dir=path.parent), 0

    def add(self, words: np.ndarray) -> None:
        """uint64 [n, 4]"""
        words.astype("<u8").tofile(self.file)
        self.rows += len(words)

    def close(self) -> np.ndarray:
        """uint64 [4, rows], mapped from the finished file."""
        index = np.lib.format.open_memmap(self.path, "w+", np.dtype("<u8"), (4, self.rows))
        self.file.seek(0)
        for start in range(0, self.rows, _ROWS):
            block = np.fromfile(self.file, "<u8", 4 * min(_ROWS, self.rows - start)).reshape(-1, 4)
            index[:, start : start + len(block)] = block.T
        self.file.close()
        index.flush()
        return index


def write_aliases(
    path: Path, aliases: Iterable, identity: dict, index: np.ndarray, statistics: Statistics
) -> tuple[int, int]:
    """Sorted, each once, only those whose image has a row. Returns (written, left out)."""
    schema, counts = with_footer(ALIAS_SCHEMA, identity), np.zeros(2, int)

    def known() -> Iterator[pa.Table]:
        for table in _in_order(alias_tables(aliases)):
            found = find(index, words_of(table.column("image_sha256")))[1]
            counts[:] += found.sum(), (~found).sum()
            statistics.add_aliases(table.filter(pa.array(found)))
            yield table.append_column("found", pa.array(found))

    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in regroup(known(), _ROWS):
            writer.write_table(table.filter(table["found"]).select(ALIAS_SCHEMA.names).cast(schema))
    return int(counts[0]), int(counts[1])


def _in_order(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Aliases in any order → sorted, each once. What comes range by range of images leaves range by range."""
    order = [(name, "ascending") for name in ("image_sha256", "dataset", "path", "domain")]
    held: list[pa.Table] = []
    last = ""
    for table in tables:
        ends = pc.min_max(table["image_sha256"]).as_py() if len(table) else {"min": "", "max": ""}
        if held and ends["min"] > last:
            yield pa.concat_tables(held).group_by(ALIAS_SCHEMA.names).aggregate([]).sort_by(order)
            held = []
        held.append(table)
        last = max(last, ends["max"])
    if held:
        yield pa.concat_tables(held).group_by(ALIAS_SCHEMA.names).aggregate([]).sort_by(order)


class Statistics:
    """Counts that need one pass and little memory: a histogram of lengths, and the set of words."""

    def __init__(self) -> None:
        self.rows = 0
        self.lengths: dict[str, np.ndarray] = {}
        self.finish: dict[str, Counter] = defaultdict(Counter)
        self.words: dict[str, set[str]] = defaultdict(set)
        self.sources: dict[tuple[str, str], np.ndarray] = {}
        "(domain, dataset) → files, images"

    def add_rows(self, table: pa.Table) -> None:
        self.rows += len(table)
        flat = table.column("captions").combine_chunks().flatten()
        names = pc.struct_field(flat, "perspective")
        for name in pc.unique(names).to_pylist():
            mine = flat.filter(pc.equal(names, name))
            lengths = np.bincount(np.maximum(pc.struct_field(mine, "n_tokens").to_numpy(), 0))
            known = self.lengths.get(name, np.zeros(0, np.int64))
            size = max(len(known), len(lengths))
            self.lengths[name] = np.pad(known, (0, size - len(known))) + np.pad(lengths, (0, size - len(lengths)))
            for item in pc.value_counts(pc.struct_field(mine, "finish_reason")).to_pylist():
                self.finish[name][item["values"]] += item["counts"]
            # Split at white space first: the slow search for what is no letter sees each different piece once.
            texts = pc.unique(pc.struct_field(mine, "text"))
            pieces = pc.utf8_lower(pc.unique(pc.list_flatten(pc.utf8_split_whitespace(texts))))
            pieces = pc.replace_substring_regex(pieces, r"[^\pL\pN'-]+", " ")
            self.words[name].update(pc.unique(pc.list_flatten(pc.utf8_split_whitespace(pieces))).to_pylist())

    def add_aliases(self, table: pa.Table) -> None:
        """All of some images: one image counts once for each (domain, dataset)."""
        counts = table.group_by(["domain", "dataset"]).aggregate(
            [("path", "count"), ("image_sha256", "count_distinct")]
        )
        for domain, dataset, files, images in zip(*(column.to_pylist() for column in counts), strict=True):
            known = self.sources.get((domain, dataset), 0)
            self.sources[domain, dataset] = known + np.array([files, images])

    def summary(self) -> dict:
        return {
            "captions": {name: self._perspective(name) for name in sorted(self.lengths)},
            "vocabulary": len(set().union(*self.words.values())),
            "sources": [
                {"domain": domain, "dataset": dataset, "files": int(files), "images": int(images)}
                for (domain, dataset), (files, images) in sorted(self.sources.items())
            ],
        }

    def _perspective(self, name: str) -> dict:
        histogram = self.lengths[name]
        n, below = int(histogram.sum()), np.cumsum(histogram)

        def quantile(q: float) -> int:
            return int(np.searchsorted(below, q * n))

        return {
            "n": n,
            "tokens_mean": round(float((histogram * np.arange(len(histogram))).sum() / n), 2),
            "tokens_p50": quantile(0.5),
            "tokens_p95": quantile(0.95),
            "tokens_max": len(histogram) - 1,
            "vocabulary": len(self.words[name] - {""}),
            "finish_reasons": dict(sorted(self.finish[name].items())),
        }


def card(manifest: Mapping) -> str:
    """README.md of a release: YAML front matter that `datasets.load_dataset` obeys, then what a person asks."""
    stats = manifest["stats"]
    parts = "".join(f"\n  - {part['file']}" for part in manifest["parts"])
    captions = [
        f"| {name} | {s['n']} | {s['tokens_mean']} | {s['tokens_p95']} | {s['tokens_max']} "
        f"| {s['finish_reasons'].get('length', 0)} | {s['vocabulary']} | `{manifest['fingerprints'][name][:12]}` |"
        for name, s in stats["captions"].items()
    ]
    sources = [f"| {s['domain']} | {s['dataset']} | {s['images']} | {s['files']} |" for s in stats["sources"]]
    left_out = manifest["aliases_without_row"]
    return f"""---
pretty_name: Image captions and caption embeddings
task_categories:
- image-to-text
configs:
- config_name: features
  default: true
  data_files:{parts}
- config_name: aliases
  data_files:
  - {ALIASES}
---
# Captions and caption embeddings of {manifest["rows"]} images

Every image was described by a teacher model and the descriptions were embedded; an image is known by the sha256 of its
file's bytes. No image is contained. Format: teachonce caption release, version {manifest["format_version"]}.

| | |
|---|---|
| images | {manifest["rows"]} |
| embedding | {manifest["dim"]} float16 numbers of unit length |
| vocabulary | {stats["vocabulary"]} words |
| files of the source data sets | {manifest["aliases"]} ({left_out} more have no caption and are left out) |
| teacher fingerprint | `{manifest["teacher_fingerprint"]}` |
| embedding fingerprint | `{manifest["embedding_fingerprint"]}` |

## Captions
`cut` counts captions that ended at the length limit instead of at a full stop.

| perspective | captions | tokens, mean | 95 % | max | cut | words | fingerprint |
|---|---|---|---|---|---|---|---|
{chr(10).join(captions)}

## Sources
| domain | dataset | images | files |
|---|---|---|---|
{chr(10).join(sources)}

## Teacher
```json
{_json(manifest["teacher"])}
```
## Embedder
```json
{_json(manifest["embedder"])}
```
## More counts
```json
{_json(stats["extra"])}
```
## Use
```python
from shards import open_release  # pip install teachonce: numpy and pyarrow, nothing else
release = open_release(".")
vectors, found = release.lookup(["<sha256 of an image file>"])
```
The parquet files open in pandas, Polars, DuckDB and `datasets` without any of our code.
"""


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
