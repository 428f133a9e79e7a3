"""`load_all`: every section is checked before any stage begins, and a mistake names key, value and nearest key."""

from pathlib import Path

import pytest

from pipeline.params import Params, load_all
from student.params import SECTIONS, ParamsError

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("caption: {model: llava-hf/llava-1.5-7b-hf}\ntrain: {max_steps: 7}\n")
    return file


def test_sections_are_read_and_the_rest_are_defaults(file):
    params = load_all(file, ["embed.pooling=concat"])
    assert (params.caption.model, params.train.max_steps, params.embed.pooling) == (
        "llava-hf/llava-1.5-7b-hf", 7, "concat",
    )  # fmt: skip
    assert params.paths.index == "artifacts/index.parquet" and params.caption.quantization == "nf4"
    assert set(params.caption.perspectives) == {"content", "color", "object", "brightness", "viewpoint"}


def test_every_known_section_is_a_section_of_params_yaml():
    assert set(Params.model_fields) == set(SECTIONS)


@pytest.mark.parametrize("section", sorted(Params.model_fields))
def test_an_unknown_key_in_any_section_is_named(file, section):
    with pytest.raises(ParamsError, match=rf"unknown key {section}\.no_such_key = 1; (did you mean|valid keys)"):
        load_all(file, [f"{section}.no_such_key=1"])


def test_the_nearest_key_is_offered(file):
    with pytest.raises(ParamsError, match=r"unknown key train\.max_step = 3; did you mean 'max_steps'\?"):
        load_all(file, ["train.max_step=3"])
    with pytest.raises(ParamsError, match=r"unknown section 'captions'; did you mean 'caption'\?"):
        load_all(file, ["captions.model=x"])


def test_sections_are_immutable(file):
    with pytest.raises(ValueError, match="frozen"):
        load_all(file).caption.model = "another"


def test_prompt_dim_null_is_left_for_the_trainer_to_fill_from_the_release(file):
    assert load_all(file, ["model.prompt_dim=null"]).model.prompt_dim is None


@pytest.mark.parametrize("file", sorted([REPOSITORY / "params.yaml", *REPOSITORY.glob("recipes/*.yaml")]), ids=str)
def test_shipped_parameter_files_are_valid(file):
    assert load_all(file).caption.perspectives
