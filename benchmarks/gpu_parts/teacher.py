"""How fast a GPU describes pictures: part "teacher" of gpu.py."""

import gc
import time
from pathlib import Path
from typing import Any

import torch

from gpu_parts.speed import Rows, median_seconds

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 products, by the maker's data sheets."""


def teacher(device: str, toy: bool, _out: Path) -> Rows:
    """Captions of five questions; the last column: products of the language model, of what the card could do."""
    from bench_teacher import SHAPES, measure

    from teacher.mini_training.checkpoint import Shape

    shape, new = (Shape(), 4) if toy else (SHAPES["llava-1.5-7b"], 48)
    sizes = {"batch_sizes": [2] if toy else [8, 32, 64], "images": 2 if toy else 64, "naive_images": 1,
             "new_tokens": new, "repeats": 1}  # fmt: skip
    layer = shape.text_width * (4 * shape.text_width + 3 * shape.text_mlp)
    parameters = shape.text_layers * layer + shape.text_width * shape.vocabulary
    tokens = (shape.image_size // shape.patch_size) ** 2 + 5 * (20 + new)  # the prefix once, five questions and answers
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peak = next((flops for card, flops in PEAK_FLOPS.items() if card in name), None)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    for quantization in ("nf4-dequantized", "nf4", "none", "int8"):
        if quantization == "nf4":  # the default's way first, then what it owes to each part
            yield from decoding(shape, dtype, device, new, toy)
        for row in measure(shape, quantization, dtype, device, **sizes):
            if peak and row["method"] == "shared" and "speed-up" in row:
                row["of the arithmetic limit"] = f"{float(row['images/s']) * tokens * 2 * parameters / peak:.0%}"
            yield row
        gc.collect()


def decoding(shape: Any, dtype: torch.dtype, device: str, new_tokens: int, toy: bool) -> Rows:
    """NF4, expanded once: a cache row a question and a slot a question, step by step and as a CUDA graph, and as many
    images as `caption.batch_images: auto` would take."""
    from bench_teacher import PROMPTS, random_llava, shared
    from PIL import Image

    from teacher.llava.captioner import measured_batch
    from teacher.llava.shared_prefix import SharedPrefixGenerator

    model, processor = random_llava(shape, "nf4-dequantized", dtype, device)
    generator = SharedPrefixGenerator(model, processor, PROMPTS, new_tokens, min_new_tokens=new_tokens)
    begun = time.perf_counter()
    fitting = 2 if toy else measured_batch(generator)
    yield {"decoding": "batch_images: auto", "batch": fitting, "seconds": round(time.perf_counter() - begun, 1)}
    for way, batch in (("slots, CUDA graph", fitting), ("slots, CUDA graph", 8), ("slots", 8), ("rows", 8)):
        if way.endswith("graph") and device != "cuda":
            continue
        generator.static, generator.graphs = way != "rows", way.endswith("graph")
        generator.forget()
        batch = min(batch, fitting)
        images = [Image.new("RGB", (640, 480), (i % 256, 90, 180)) for i in range(batch)]
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(
            lambda images=images: shared(generator, images, len(images)), 1 if toy else 2, device, 1
        )
        row = {"decoding": way, "batch": batch, "images/s": f"{batch / seconds:.3g}"}
        if device == "cuda":
            row["peak memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        yield row
