"""LLaVA, or another model of its kind, describes images from several perspectives [paper]: no files, no bookkeeping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from teacher.identity import library_versions, resolve_model
from teacher.llava.loading import load_llava, load_processor
from teacher.llava.separate import SeparateGenerator
from teacher.llava.shared_prefix import SHARED, SharedPrefixGenerator
from teacher.square import Square
from teacher.teacher import Caption, CaptionFailure, Statistics


class Captioner:
    """A frozen vision-language model that answers `perspectives` (name -> prompt) about images.

    `model` is a hub id, a local directory, or `"mini"`; `batch_size` images are decoded together, with `"auto"` as many
    as a GPU's memory holds. Running out of memory halves the batch for the rest of the run; any other failure of a
    batch is retried image by image.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        perspectives: Mapping[str, str],
        quantization: str = "nf4",
        dtype: str = "auto",
        device: str = "auto",
        max_new_tokens: int = 64,
        padding: str = "square",
        image_side: int | None = None,
        revision: str | None = None,
        batch_size: int | str = "auto",
        quantized_cache: str | Path | None = None,
    ):
        if not perspectives:
            raise ValueError("perspectives is empty: name at least one question")
        source = resolve_model(model, revision)
        self.processor = load_processor(source, padding)
        self.model = load_llava(
            source, quantization=quantization, dtype=dtype, device=device, quantized_cache=quantized_cache
        )
        packed = any(type(module).__name__ == "Linear4bit" for module in self.model.modules())
        self.weights = {"weights": "packed" if packed else "expanded"} if quantization == "nf4" else {}
        kind = SharedPrefixGenerator if self.model.config.model_type in SHARED else SeparateGenerator
        self.answer = kind(self.model, self.processor, perspectives, max_new_tokens, side=image_side)
        self.square = Square(self.answer.side, padding, self.answer.fill)
        self.batch_size = measured_batch(self.answer) if batch_size == "auto" else int(batch_size)

    @property
    def statistics(self) -> Statistics:
        """Counts and seconds since the start."""
        return self.answer.statistics

    def provenance(self) -> dict[str, str]:
        """What may differ between two runs with equal fingerprints."""
        device = self.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        versions = library_versions("torch", "transformers", "bitsandbytes")
        return {"device": name, "dtype": str(self.model.dtype).removeprefix("torch."), **self.weights, **versions}

    def caption(
        self, images: Sequence[Image.Image], perspectives: Sequence[str] | None = None
    ) -> list[dict[str, Caption] | CaptionFailure]:
        """Caption RGB images; one dictionary (perspective -> `Caption`) or `CaptionFailure` per image, in order."""
        squares = [self.square(image) for image in images]
        results: list = []
        while len(results) < len(squares):
            chunk = squares[len(results) : len(results) + self.batch_size]
            try:
                results += self.answer(chunk, perspectives)
            except Exception as error:
                if not _out_of_memory(error):
                    results += self._one_by_one(chunk, perspectives, error)
                elif len(chunk) > 1:
                    self.batch_size = (len(chunk) + 1) // 2  # remembered: later batches start from what fits
                else:
                    raise MemoryError(
                        "out of memory with one image at a time: ask fewer perspectives at once, choose "
                        "quantization nf4, or free the device"
                    ) from error
            if torch.cuda.is_available() and len(chunk) > self.batch_size:
                torch.cuda.empty_cache()
        return results

    def _one_by_one(
        self, chunk: Sequence[Image.Image], perspectives: Sequence[str] | None, error: Exception
    ) -> list[dict[str, Caption] | CaptionFailure]:
        """One bad image must cost only itself; but if every image of a batch fails, the model does, and that raises."""
        if len(chunk) == 1:
            return [_failure(error)]
        results: list = []
        for image in chunk:
            try:
                results += self.answer([image], perspectives)
            except Exception as single_error:
                results.append(_failure(single_error))
        if all(isinstance(result, CaptionFailure) for result in results):
            raise error
        return results


def measured_batch(answer: SharedPrefixGenerator) -> int:
    """Images that a GPU's memory holds, by what `answer` takes for a few. On a CPU, which gains little from more: 8."""
    device = answer.model.device
    if device.type != "cuda":
        return 8
    blank, shortest = Image.new("RGB", (answer.side, answer.side)), answer.min_new_tokens

    def peak(images: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        answer([blank] * images)
        return torch.cuda.max_memory_allocated(device)

    answer.min_new_tokens = answer.max_new_tokens  # the answers are as long as they may become
    try:
        free, _ = torch.cuda.mem_get_info(device)
        return fitting_batch(peak, free + torch.cuda.memory_allocated(device))
    finally:
        answer.min_new_tokens, answer.statistics = shortest, Statistics()
        answer.forget()
        torch.cuda.empty_cache()


def fitting_batch(peak: Callable[[int], int], room: int) -> int:
    """Images, 256 at most, whose `peak` is nine tenths of `room` bytes, if it grows as between two and six of them. The
    rest is for what memory in pieces loses."""
    peaks = []
    for images in (2, 6):
        try:
            peaks.append(peak(images))
        except torch.OutOfMemoryError:
            return max(1, images // 3)
    few, more = peaks
    return max(1, min(256, int(2 + (0.9 * room - few) * 4 / max(more - few, 1))))


def _failure(error: Exception) -> CaptionFailure:
    return CaptionFailure(f"{type(error).__name__}: {error}".splitlines()[0])


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
