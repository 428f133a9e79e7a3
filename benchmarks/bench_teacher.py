"""How fast is the captioner, beside what people write? Five questions an image, fixed new tokens, one run, one model.

    naive    one `generate` call a question, batch 1: encodes the image five times
    padded   one left-padded `generate` call of all questions of a batch: still encodes and prefills it five times
    shared   teacher.prefix: encode and prefill once, fan the KV cache out, decode all rows together

    python benchmarks/bench_teacher.py --record                       # CPU, a random mid-size LLaVA, float32

benchmarks/gpu.py does it at the shape of LLaVA-1.5-7B. In float32 all three must give identical tokens, and the run
fails if they do not. In bfloat16 greedy tokens depend on the batch composition, so there the share of equal rows is
only reported. Times are medians.
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from tables import show

from teacher.identity import QUANTIZATIONS
from teacher.llava.loading import assert_precision
from teacher.llava.shared_prefix import SharedPrefixGenerator
from teacher.mini_training.answers import QUESTIONS
from teacher.mini_training.checkpoint import Shape, build_model, build_processor

PROMPTS = {name: wordings[0] for name, wordings in QUESTIONS.items()}
SHAPES = {
    "mid": Shape(
        image_size=336, patch_size=14, vision_width=256, vision_layers=4, vision_mlp=512,
        text_width=512, text_layers=8, text_mlp=1408, heads=8, vocabulary=1024,
    ),
    "llava-1.5-7b": Shape(
        image_size=336, patch_size=14, vision_width=1024, vision_layers=24, vision_mlp=4096, vision_heads=16,
        text_width=4096, text_layers=32, text_mlp=11008, heads=32, vocabulary=32064,
    ),
}  # fmt: skip


def random_llava(shape: Shape, quantization: str, dtype: torch.dtype, device: str):
    """(model, processor) with random weights, made on the device; a gain keeps the answers from being all alike."""
    processor = build_processor(shape, PROMPTS.values())
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = build_model(shape, processor)
    torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 2.0
    quantize(model, quantization, dtype)
    return model.eval().requires_grad_(False), processor


def quantize(model, quantization: str, dtype: torch.dtype) -> None:
    """What `from_pretrained` does for a checkpoint, for a model that was never on disk."""
    kind, dequantize = quantization.removesuffix("-dequantized"), quantization.endswith("-dequantized")
    if kind == "none":
        return
    import bitsandbytes as bnb

    for parent in model.model.language_model.modules():
        for name, linear in list(parent.named_children()):
            if type(linear) is not torch.nn.Linear:
                continue
            weight, shape = linear.weight.data, (linear.in_features, linear.out_features)
            if dequantize:
                packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
                linear.weight.data = bnb.functional.dequantize_4bit(packed, state).to(dtype)
            elif kind == "nf4":
                layer = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta")
                layer.weight = bnb.nn.Params4bit(weight.cpu(), requires_grad=False, quant_type="nf4")
                setattr(parent, name, layer.to(weight.device))
            else:
                layer = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False, device="meta")
                layer.weight = bnb.nn.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
                setattr(parent, name, layer.to(weight.device))
    assert_precision(model, "none" if dequantize else kind)


def ordinary(generator: SharedPrefixGenerator, images: list, batch: int, names: list[str]) -> list:
    """Captions by plain `generate` calls of `batch` images times `names` questions, nothing shared."""
    processor, model = generator.processor, generator.model
    texts = {}
    for name in names:
        content = [{"type": "image"}, {"type": "text", "text": PROMPTS[name]}]
        texts[name] = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    results = []
    for start in range(0, len(images), batch):
        chunk = images[start : start + batch]
        rows = [(image, texts[name]) for image in chunk for name in names]
        inputs = processor(
            images=[row[0] for row in rows], text=[row[1] for row in rows], padding=True, return_tensors="pt"
        )
        inputs = inputs.to(model.device, model.dtype)
        length, count = inputs["input_ids"].shape[1], generator.max_new_tokens
        output = model.generate(**inputs, do_sample=False, max_new_tokens=count, min_new_tokens=count)[:, length:]
        captions = [generator._caption(row) for row in output.tolist()]
        results += [
            dict(zip(names, captions[i : i + len(names)], strict=True)) for i in range(0, len(rows), len(names))
        ]
    return results


def naive(generator, images):
    answers = [ordinary(generator, images, 1, [name]) for name in PROMPTS]
    return [{name: caption for answer in row for name, caption in answer.items()} for row in zip(*answers, strict=True)]


def shared(generator, images, batch):
    results = []
    for start in range(0, len(images), batch):
        pixels = generator.processor.image_processor(images=images[start : start + batch], return_tensors="pt")
        pixels = pixels["pixel_values"].to(generator.model.device, generator.model.dtype)
        results += generator.answer_inputs({"pixel_values": pixels}, len(pixels), list(generator.ids))
    return results


def timed(repeats: int, function, *arguments):
    """(result, median seconds of `repeats` calls)."""
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(repeats):
        synchronize()
        started = perf_counter()
        result = function(*arguments)
        synchronize()
        times.append(perf_counter() - started)
    return result, statistics.median(times)


def measure(
    shape: Shape,
    quantization: str,
    dtype: torch.dtype,
    device: str,
    *,
    batch_sizes: list[int],
    images: int,
    naive_images: int,
    new_tokens: int,
    repeats: int,
) -> Iterator[dict[str, object]]:
    """Rows of the table for one quantization mode: each method, `naive` and `padded` on `naive_images` only (0: all),
    at each batch size."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # int8 says at every layer that it casts
    model, processor = random_llava(shape, quantization, dtype, device)
    generator = SharedPrefixGenerator(model, processor, PROMPTS, new_tokens, min_new_tokens=new_tokens)
    rng = np.random.default_rng(0)
    many = [Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((640, 480)) for _ in range(images)]
    few = many[: naive_images or None]
    shared(generator, many[:1], 1)  # warm-up
    contenders = [("naive", 1, few, lambda: naive(generator, few))]
    for batch in batch_sizes:
        contenders.append(("padded", batch, few, partial(ordinary, generator, few, batch, list(PROMPTS))))
        contenders.append(("shared", batch, many, partial(shared, generator, many, batch)))
    expected = base = None
    for name, batch, pictures, caption in contenders:
        row = {"method": name, "weights": quantization, "batch": batch}
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            captions, seconds = timed(repeats, caption)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            yield row | {"images/s": "out of memory"}
            continue
        rate = len(pictures) / seconds
        expected, base = expected or captions, base or rate
        pairs = [(a[key], b[key]) for a, b in zip(captions, expected, strict=False) for key in PROMPTS]
        equal = sum(a == b for a, b in pairs) / len(pairs)
        if equal < 1 and dtype == torch.float32 and quantization != "int8":
            sys.exit(f"bench_teacher: {name} gave other tokens than naive for {1 - equal:.1%} of the captions")
        row |= {"images/s": f"{rate:.3g}", "tokens/s": f"{rate * len(PROMPTS) * new_tokens:.0f}"}
        if torch.cuda.is_available():
            row["peak memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        yield row | {"equal to naive": f"{equal:.0%}", "speed-up": f"{rate / base:.2f}x"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", nargs="+", choices=QUANTIZATIONS, default=["none"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[4])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--naive-images", type=int, default=0, help="images of the two slow methods (0: all)")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3, help="calls of each method; the table has their medians")
    parser.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    options = vars(parser.parse_args())
    record, modes = options.pop("record"), options.pop("quantization")
    rows = [row for mode in modes for row in measure(SHAPES["mid"], mode, torch.float32, "cpu", **options)]
    title = f"bench_teacher: mid-size LLaVA, random weights, float32, 5 questions x {options['new_tokens']} new tokens"
    show(title, rows, record)


if __name__ == "__main__":
    main()
