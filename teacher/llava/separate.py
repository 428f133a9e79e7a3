"""Every question about an image by itself: for models whose prefix cannot be shared."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import torch
from PIL import Image

from teacher.llava.shared_prefix import SharedPrefixGenerator
from teacher.teacher import Caption


class SeparateGenerator(SharedPrefixGenerator):
    """transformers' own greedy `generate`, one question about a batch of squares after the other."""

    @torch.inference_mode()
    def __call__(self, squares: Sequence[Image.Image], names: Sequence[str] | None = None) -> list[dict[str, Caption]]:
        names = list(self.ids) if names is None else list(names)
        started, counts = perf_counter(), self.statistics
        said: list[dict[str, Caption]] = [{} for _ in squares]
        for name in names:
            inputs = self.inputs(squares, name)
            rows = self.model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=self.max_new_tokens,
                min_new_tokens=self.min_new_tokens or None,
                eos_token_id=sorted(self.end_ids),
                pad_token_id=self.pad_id,
            )[:, inputs["input_ids"].shape[1] :].tolist()
            for caption, row in zip(said, rows, strict=True):
                caption[name] = self._caption(row)
            counts.prompt_tokens += inputs["input_ids"].numel()
        counts.images += len(squares)
        counts.captions += len(squares) * len(names)
        counts.tokens += sum(c.n_tokens + (c.finish_reason == "stop") for answers in said for c in answers.values())
        counts.seconds["generate"] += perf_counter() - started
        return said
