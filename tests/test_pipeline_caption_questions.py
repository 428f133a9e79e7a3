"""Files of questions as people write them."""

import pytest

from pipeline.caption import main


@pytest.mark.parametrize("content", ["mood: What: is it?\n b", "mood: Which?\nmood: Which one?\n", "mood: [\n"])
def test_questions_that_are_no_yaml_are_one_line(tmp_path, content):
    (tmp_path / "photos").mkdir()
    (tmp_path / "q.yaml").write_text(content)
    with pytest.raises(SystemExit, match=r"^caption: --questions .*q\.yaml: ") as error:
        main([str(tmp_path / "photos"), str(tmp_path / "out"), "--questions", str(tmp_path / "q.yaml")])
    assert "\n" not in str(error.value)
