"""The five recipes of docs/reuse.md run as they are written."""

import re
from pathlib import Path

import pytest
from processes import printed
from shards_maker import image_bytes, make_release

PAGE = (Path(__file__).parents[1] / "docs" / "reuse.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^## (\d)\. .*?```python\n(.*?)```", PAGE, re.M | re.S)
SAYS = {
    "1": r"1\.000 \{'brightness'.*number 7\.",
    "2": r"set1.*gt/1\.png",
    "3": r"medical: 12 of 12 named rightly",
    "4": r"^$",
    "5": r"torch\.Size\(\[4, 16\]\) \[True, True, True, True\]",
}


def test_there_are_five():
    assert [number for number, _ in RECIPES] == list(SAYS)


@pytest.mark.parametrize(("number", "code"), RECIPES)
def test_recipe(tmp_path, number, code):
    make_release(tmp_path / "artifacts" / "caption_shards")
    (tmp_path / "IMAGES").mkdir()
    (tmp_path / "IMAGE").write_bytes(image_bytes(7))
    for i in range(8):
        (tmp_path / "IMAGES" / f"{i}.png").write_bytes(image_bytes(i))
    (tmp_path / "recipe.py").write_text(code)
    said = printed(tmp_path, "recipe.py", MPLBACKEND="agg")
    assert re.search(SAYS[number], said, re.S), said
    made = {"2": "buildings.csv", "4": "tsne.png"}.get(number)
    assert made is None or (tmp_path / made).stat().st_size > 100
