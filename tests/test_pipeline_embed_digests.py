"""What the embedding cache knows captions by: a cache that another version wrote must be found again."""

import hashlib
import json

import numpy as np
import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.embedding.rows import CaptionBlock

NAMES = ["color", 'a "name" with % and \\']
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("ab c~{}%'", max_size=12)


@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=5), st.booleans(), st.integers(1, 5))
@example([("a dog", "blue", True), ("", "sky", True)], True, 1)
@example([("a\x7fdog", "blue", True)], True, 1)
@example([('a "dog"', "blue", True)], True, 1)
@example([("a dog", "bl\\ue", True)], True, 1)
@example([("", "", True)], True, 1)
@example([("Größe", "\n", True), ("a", "b", False)], False, 1)
def test_digest_is_the_sha256_of_json(rows, all_ok, chunk):
    rows = sorted(rows)
    ok = np.array([[True, all_ok or has] for _, _, has in rows])
    table = pa.table({"first": [a for a, _, _ in rows], "second": [b for _, b, _ in rows]})
    table = pa.concat_tables(table.slice(start, chunk) for start in range(0, len(rows), chunk))
    captions = {name: pa.table({"caption": column}) for name, column in zip(sorted(NAMES), table, strict=True)}
    block = CaptionBlock("", "g", pa.table({"image_sha256": [f"{i}" for i in range(len(rows))]}), captions, ok)
    for digest, texts, held in zip(block.digests, zip(*table.to_pydict().values(), strict=True), ok, strict=True):
        said = {name: text for name, text, has in zip(sorted(NAMES), texts, held, strict=True) if has}
        assert digest == hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
