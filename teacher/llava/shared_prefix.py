"""Several questions about one image for little more than the price of one: the shared-prefix generator.

The questions of an image share everything up to their first differing token: `USER: <image>\n` is about 580 tokens
in LLaVA-1.5, each question about 20. The prefix is run once per image into a KV cache, the cache rows are repeated
for the questions, and all rows are decoded together. In float32 the tokens equal those of separate calls.

B images, Q questions, P prefix tokens, S suffix tokens (longest), T new tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import torch
from PIL import Image
from torch import Tensor

from teacher.llava.greedy_decode import fan_out, greedy
from teacher.teacher import Caption, Statistics


def question_ids(processor, prompts: Mapping[str, str]) -> dict[str, list[int]]:
    """Token ids of each question as the chat template writes it, `<image>` expanded to its image tokens."""
    size = processor.image_processor.crop_size
    blank = Image.new("RGB", (size["width"], size["height"]))
    ids = {}
    for name, prompt in prompts.items():
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        ids[name] = processor(images=blank, text=text)["input_ids"][0]
    return ids


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix that leaves every sequence at least one token."""
    limit = min(len(sequence) for sequence in sequences) - 1
    columns = zip(*(sequence[:limit] for sequence in sequences), strict=True)
    return next((index for index, column in enumerate(columns) if len(set(column)) > 1), limit)


class SharedPrefixGenerator:
    """Greedy answers of a LLaVA `model` to fixed questions (name -> prompt) about batches of images."""

    def __init__(self, model, processor, prompts: Mapping[str, str], max_new_tokens: int, min_new_tokens: int = 0):
        self.model, self.processor = model, processor
        self.ids = question_ids(processor, prompts)
        for name, ids in self.ids.items():
            if model.config.image_token_id not in ids:
                raise ValueError(f"the model's chat template drops the image from the question {name!r}")
        end = model.generation_config.eos_token_id
        # The tokenizer's too: a fine-tuned model's files may name the end in one place and teach another.
        ends = {*(end if isinstance(end, list) else [end]), processor.tokenizer.eos_token_id}
        self.end_ids = ends - {None}
        if not self.end_ids:
            raise ValueError("neither generation_config.json nor the tokenizer names an end token (eos_token_id)")
        pad = processor.tokenizer.pad_token_id
        self.pad_id = min(self.end_ids) if pad is None else pad
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        self.statistics = Statistics()

    @torch.inference_mode()
    def __call__(self, pixels_BCHW: Tensor, names: Sequence[str] | None = None) -> list[dict[str, Caption]]:
        """Answer the questions `names` (default: all) for each image; one dictionary per image, in order."""
        from transformers import DynamicCache

        names = list(self.ids) if names is None else list(names)
        sequences = [self.ids[name] for name in names]
        device, batch, n_prefix = self.model.device, len(pixels_BCHW), shared_prefix(sequences)
        if self.model.config.image_token_id in {token for ids in sequences for token in ids[n_prefix:]}:
            raise ValueError("the chat template puts the question before the image, so nothing can be shared")
        started = perf_counter()
        cache = DynamicCache(config=self.model.config)
        prefix_BP = torch.tensor(sequences[0][:n_prefix], device=device).repeat(batch, 1)
        pixels_BCHW = pixels_BCHW.to(device, self.model.dtype)
        self.model.model(input_ids=prefix_BP, pixel_values=pixels_BCHW, past_key_values=cache, use_cache=True)
        ids_QL, mask_QL = self._right_aligned(sequences, n_prefix)
        suffix_QS = ids_QL[:, n_prefix:]
        # The cache is consumed by these questions: asked others, it would answer wrongly and without an error.
        cache = fan_out(cache, len(names), suffix_QS.shape[1] + self.max_new_tokens)
        prefilled = self._now()
        tokens, wasted = greedy(
            self.model, cache, suffix_QS.repeat(batch, 1), mask_QL.repeat(batch, 1), end_ids=self.end_ids,
            max_new_tokens=self.max_new_tokens, min_new_tokens=self.min_new_tokens,
        )  # fmt: skip
        captions = [self._caption(row) for row in tokens]
        self._count(batch, n_prefix, suffix_QS.shape[1], sequences, tokens, wasted)
        self.statistics.seconds["prefill"] += prefilled - started
        self.statistics.seconds["generate"] += self._now() - prefilled
        return [dict(zip(names, captions[i : i + len(names)], strict=True)) for i in range(0, len(tokens), len(names))]

    def _right_aligned(self, sequences: list[list[int]], n_prefix: int) -> tuple[Tensor, Tensor]:
        """Ids and mask `[Q, P + S]`. Pads go *between* prefix and suffix: the cache holds the prefix unpadded."""
        width = max(map(len, sequences))
        ids, mask = [], []
        for sequence in sequences:
            pads = width - len(sequence)
            ids.append([*sequence[:n_prefix], *[self.pad_id] * pads, *sequence[n_prefix:]])
            mask.append([*[1] * n_prefix, *[0] * pads, *[1] * (len(sequence) - n_prefix)])
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)

    def _caption(self, row: list[int]) -> Caption:
        n_tokens = next((index for index, token in enumerate(row) if token in self.end_ids), len(row))
        text = self.processor.tokenizer.decode(row[:n_tokens], skip_special_tokens=True).strip()
        return Caption(text, n_tokens, "stop" if n_tokens < len(row) else "length")

    def _count(
        self, batch: int, n_prefix: int, width: int, sequences: list[list[int]], tokens: list[list[int]], wasted: int
    ) -> None:
        counts, asked = self.statistics, sum(len(sequence) - n_prefix for sequence in sequences)
        counts.images += batch
        counts.captions += len(tokens)
        counts.tokens += sum(map(len, tokens))
        counts.wasted_tokens += wasted
        counts.prompt_tokens += batch * (n_prefix + asked)
        counts.wasted_prompt_tokens += batch * (len(sequences) * width - asked)

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return perf_counter()
