"""Loading a vision-language model in one of four precisions, and proving that it is in that precision."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import torch

from teacher.identity import IMAGE_PROCESSOR, QUANTIZATIONS, Source, _require, assert_complete, fingerprint

TEXT_MODELS = ("language_model", "text_model")
"""What transformers calls the part of a vision-language model that is quantised."""


def resolve_device(device: str = "auto") -> torch.device:
    """`"auto"` is the current CUDA GPU if there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`"auto"` is bfloat16 on a GPU and float32 on a CPU, where bfloat16 is emulated on most machines."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    resolved = getattr(torch, dtype, None)
    if not isinstance(resolved, torch.dtype) or not resolved.is_floating_point:
        raise ValueError(f"dtype: {dtype!r} is not a float type; use auto, bfloat16, float16 or float32")
    return resolved


def load_llava(
    source: Source,
    *,
    quantization: str = "nf4",
    dtype: str = "auto",
    device: str = "auto",
    quantized_cache: str | Path | None = None,
):
    """The checkpoint's model of transformers' kind image-text-to-text, frozen, on `device`, its module types asserted.

    `nf4` and `int8` quantise the language model's linear layers with bitsandbytes; `nf4-dequantized` rounds the
    weights to NF4 and expands them once, before any forward: the memory of bf16 and the speed of bf16, with the
    weights of NF4. On a GPU with room for it `nf4` is expanded too: the same weights, so the same captions to rounding.
    With `quantized_cache` (a directory) the quantised weights are saved there once and read back on
    every later start. Raises `ValueError` for an unknown mode or a checkpoint of another kind.
    """
    _require("quantization", quantization, QUANTIZATIONS)
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    # Nothing that a user can act on: bars of a second, a kernel for CPUs, an argument's next name.
    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)

    device, dtype = resolve_device(device), resolve_dtype(dtype, resolve_device(device))
    config = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise ValueError(f"model {source.path!r} is of type {config.model_type!r}, which describes no images")
    with torch.device("meta"):
        parts = [name for name, _ in AutoModelForImageTextToText.from_config(config).model.named_children()]
    # transformers 5 anchors these patterns at the start of the module's full name: "vision_tower" alone is silently
    # ignored. The vision tower and projector stay in `dtype` because their errors reach every word of every caption.
    skip = [*(f"model.{name}" for name in parts if name not in TEXT_MODELS), "lm_head"]
    kind = quantization.removesuffix("-dequantized")
    origin, revision, options = source.path, source.revision, {}
    cached = _cached_copy(quantized_cache, source, kind, dtype, skip)
    if cached is not None and cached.is_dir():
        origin, revision = str(cached), None  # carries its own quantization_config
    elif kind != "none":
        options["quantization_config"] = bitsandbytes_config(kind, dtype, skip)
    options |= {"trust_remote_code": False, "revision": revision, "dtype": dtype, "device_map": {"": device}}
    model, loaded = AutoModelForImageTextToText.from_pretrained(origin, output_loading_info=True, **options)
    assert_complete(origin, loaded["missing_keys"])
    assert_precision(model, kind)
    if cached is not None and not cached.is_dir():
        _save(model, cached)
    if quantization == "nf4-dequantized" or quantization == "nf4" and room_to_expand(model):
        model = model.dequantize(dtype=dtype)  # without dtype it crashes; after a forward on the CPU it is garbage
        assert_precision(model, "none")
    return model.eval().requires_grad_(False)


def room_to_expand(model) -> bool:
    """Whether NF4's weights, expanded, leave a GPU three tenths of its free memory. Packed, they are expanded anew for
    every product, which takes a GPU two to four times as long; a CPU has kernels of its own."""
    if model.device.type != "cuda":
        return False
    packed = sum(m.in_features * m.out_features for m in model.modules() if type(m).__name__ == "Linear4bit")
    return packed * model.dtype.itemsize <= 0.7 * torch.cuda.mem_get_info(model.device)[0]


def load_processor(source: Source, padding: str = "square"):
    """The checkpoint's tokenizer and chat template; LLaVA's image processor is pinned in place of the stock default.

    The stock one is chosen by what happens to be installed (torchvision or not) and centre-crops; LLaVA-1.5 was
    trained on images padded to a square, and a crop hides what "viewpoint" asks about.
    """
    import transformers

    options = {"revision": source.revision, "trust_remote_code": False}
    processor = transformers.AutoProcessor.from_pretrained(source.path, backend="pil", **options)
    if isinstance(processor, transformers.LlavaProcessor):
        image_processor = getattr(transformers, IMAGE_PROCESSOR)
        processor.image_processor = image_processor.from_pretrained(source.path, do_pad=padding == "square", **options)
    return processor


def bitsandbytes_config(kind: str, dtype: torch.dtype, skip: list[str]):
    """Quantisation settings for `kind` (`nf4` or `int8`): the language model's blocks only."""
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    # No double quantisation: it saves 0.4 bit a weight and costs 16 % of the speed (bitsandbytes' own H100 table).
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )


def assert_precision(model, kind: str) -> None:
    """Raise `TypeError` unless the language model's linears are of `kind` and all others are plain `nn.Linear`."""
    quantized = torch.nn.Linear
    if kind != "none":
        import bitsandbytes

        quantized = {"nf4": bitsandbytes.nn.Linear4bit, "int8": bitsandbytes.nn.Linear8bitLt}[kind]
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        wanted = quantized if name.startswith(tuple(f"model.{part}." for part in TEXT_MODELS)) else torch.nn.Linear
        found = type(module) if "bitsandbytes" in type(module).__module__ else torch.nn.Linear  # or a subclass of it
        if found is not wanted:
            raise TypeError(f"{name} is {found.__name__}, not {wanted.__name__}: quantization {kind!r} failed")


def _cached_copy(
    cache: str | Path | None, source: Source, kind: str, dtype: torch.dtype, skip: list[str]
) -> Path | None:
    if cache is None or kind == "none":
        return None
    key = {"model": source.identity, "quantization": kind, "dtype": str(dtype), "skip": skip}
    return Path(cache) / fingerprint(key)[:32]


def _save(model, directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        model.save_pretrained(unfinished)
        unfinished.rename(directory)  # another process may have been faster: then its copy stays
    except OSError:
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
