"""Several questions about one image for little more than the price of one: the shared-prefix generator.

The questions of an image share everything up to their first differing token: `USER: <image>\n` is about 580 tokens
in LLaVA-1.5, each question about 20. The prefix is run once per image into a KV cache, the cache rows are repeated
for the questions, and all rows are decoded together. In float32 the tokens equal those of separate calls.

B images, Q questions, P prefix tokens, S suffix tokens (longest), T new tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.cache_utils import Cache

from teacher.llava import static_decode
from teacher.llava.greedy_decode import fan_out, greedy
from teacher.teacher import Caption, Statistics

SHARED = ("llava", "llava_next", "idefics3")
"""Architectures that read a prefix alike whatever follows, and for which equal tokens are proved by a test. Others,
such as PaliGemma, whose image attends to the question, are asked every question by itself."""


SIDE = 448
"""Of the squares for a model that looks at pictures of any size."""


def question_texts(processor, prompts: Mapping[str, str]) -> dict[str, str]:
    """Each question as the chat template writes it."""
    texts = {}
    for name, prompt in prompts.items():
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        texts[name] = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return texts


def question_ids(processor, prompts: Mapping[str, str], side: int | None = None) -> dict[str, list[int]]:
    """Token ids of each question, `<image>` expanded to the image tokens of a square of `side`."""
    side = side or processor.image_processor.crop_size["height"]
    blank = Image.new("RGB", (side, side))
    return {
        name: list(processor(images=[blank], text=[text])["input_ids"][0])
        for name, text in question_texts(processor, prompts).items()
    }


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix that leaves every sequence at least one token."""
    limit = min(len(sequence) for sequence in sequences) - 1
    columns = zip(*(sequence[:limit] for sequence in sequences), strict=True)
    return next((index for index, column in enumerate(columns) if len(set(column)) > 1), limit)


class SharedPrefixGenerator:
    """Greedy answers of a vision-language `model` to fixed questions (name -> prompt) about batches of squares.

    `side` of the squares: by default what the model's vision tower looks at.
    """

    def __init__(
        self,
        model,
        processor,
        prompts: Mapping[str, str],
        max_new_tokens: int,
        min_new_tokens: int = 0,
        side: int | None = None,
    ):
        self.model, self.processor = model, processor
        self.side = side or getattr(model.config.vision_config, "image_size", None) or SIDE
        self.fill = tuple(int(x * 255) for x in processor.image_processor.image_mean)
        self.texts = question_texts(processor, prompts)
        self.ids = question_ids(processor, prompts, self.side)
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
        self.static, self.graphs = static_decode.decodes(model), static_decode.records(model)
        self._decoder: tuple[object, static_decode.StaticDecoder] | None = None
        self.levels_CV: Tensor | None = None
        if model.config.model_type == "llava":
            if side not in (None, seen := processor.image_processor.crop_size["height"]):
                raise ValueError(f"image_side {side}: this LLaVA looks at {seen} pixels; leave it null")
            self.levels_CV = self._levels()

    def _levels(self) -> Tensor:
        """[3, 256]: what the image processor makes of each 8-bit level of each channel."""
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
        asked = {"do_resize": False, "do_center_crop": False, "do_pad": False, "return_tensors": "pt"}
        seen = self.processor.image_processor(images=ramp, **asked)["pixel_values"][0]
        return seen.reshape(3, 256).to(self.model.device, self.model.dtype)

    def image_inputs(self, squares: Sequence[Image.Image], name: str) -> dict[str, Tensor]:
        """What the model takes of `squares`, on its device. Of a LLaVA, bit-equal to its image processor's pixels
        [B, 3, side, side], by a table."""
        if self.levels_CV is not None:
            levels_BHWC = self._moved(torch.from_numpy(np.stack([np.asarray(square) for square in squares])))
            return {"pixel_values": torch.stack([self.levels_CV[c][levels_BHWC[..., c].long()] for c in range(3)], 1)}
        inputs = self.inputs(squares, name)
        return {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}

    def inputs(self, squares: Sequence[Image.Image], name: str) -> dict[str, Tensor]:
        """What the model takes of `squares` and the question `name`: all rows are of one length."""
        text = [self.texts[name]] * len(squares)
        inputs = self.processor(images=[[square] for square in squares], text=text, return_tensors="pt")
        inputs.pop("labels", None)
        return {
            key: moved.to(self.model.dtype) if moved.is_floating_point() else moved
            for key, moved in ((key, self._moved(value)) for key, value in inputs.items())
        }

    def _moved(self, batch: Tensor) -> Tensor:
        """On the model's device; from pinned memory, and without waiting, to a GPU."""
        device = self.model.device
        pinned = batch.pin_memory() if self.static and device.type != "cpu" else batch
        return pinned.to(device, non_blocking=True)

    def __call__(self, squares: Sequence[Image.Image], names: Sequence[str] | None = None) -> list[dict[str, Caption]]:
        """Answer the questions `names` (default: all) for each square; one dictionary per image, in order."""
        names = list(self.ids) if names is None else list(names)
        started = perf_counter()
        inputs = self.image_inputs(squares, names[0])
        self.statistics.seconds["preprocess"] += perf_counter() - started
        return self.answer_inputs(inputs, len(squares), names)

    @torch.inference_mode()
    def answer_inputs(self, inputs: dict[str, Tensor], batch: int, names: Sequence[str]) -> list[dict[str, Caption]]:
        """The same, of `image_inputs`."""
        sequences = [self.ids[name] for name in names]
        n_prefix, started = shared_prefix(sequences), perf_counter()
        if self.model.config.image_token_id in {token for ids in sequences for token in ids[n_prefix:]}:
            raise ValueError("the chat template puts the question before the image, so nothing can be shared")
        if self.static:
            try:
                decoder = self._decoder_of(sequences, n_prefix, batch)
                decoder.prefill(inputs, batch)
                prefilled, width = self._now(), 0
                tokens, wasted = decoder.decode(batch)
            except BaseException:
                self.forget()
                raise
        else:
            cache, suffix_RS, mask_RL = self._prefilled(inputs, sequences, n_prefix, batch)
            prefilled, width = self._now(), suffix_RS.shape[1]
            tokens, wasted = greedy(
                self.model, cache, suffix_RS, mask_RL, end_ids=self.end_ids,
                max_new_tokens=self.max_new_tokens, min_new_tokens=self.min_new_tokens,
            )  # fmt: skip
        captions = [self._caption(row) for row in tokens]
        self._count(batch, n_prefix, width, sequences, tokens, wasted)
        self.statistics.seconds["prefill"] += prefilled - started
        self.statistics.seconds["generate"] += self._now() - prefilled
        return [dict(zip(names, captions[i : i + len(names)], strict=True)) for i in range(0, len(tokens), len(names))]

    def _decoder_of(self, sequences: list[list[int]], n_prefix: int, batch: int) -> static_decode.StaticDecoder:
        """The last one, if it answers these questions and so many images: it keeps its memory and its graphs."""
        settings = {"end_ids": set(self.end_ids), "max_new_tokens": self.max_new_tokens}
        settings["min_new_tokens"] = self.min_new_tokens
        if self._decoder is None or self._decoder[0] != (sequences, settings) or self._decoder[1].images < batch:
            self.forget()
            made = static_decode.StaticDecoder(self.model, sequences, n_prefix, batch, graphs=self.graphs, **settings)
            self._decoder = (sequences, settings), made
        return self._decoder[1]

    def forget(self) -> None:
        """Give back the memory that is kept from one batch to the next."""
        self._decoder = None

    def _prefilled(
        self, inputs: dict[str, Tensor], sequences: list[list[int]], n_prefix: int, batch: int
    ) -> tuple[Cache, Tensor, Tensor]:
        """(cache with a row for each question of each image, suffixes, mask) for `greedy`."""
        from transformers import DynamicCache

        cache, device = DynamicCache(config=self.model.config), self.model.device
        prefix_BP = torch.tensor(sequences[0][:n_prefix], device=device).repeat(batch, 1)
        self.model.model(input_ids=prefix_BP, **inputs, past_key_values=cache, use_cache=True)
        ids_QL, mask_QL = self._right_aligned(sequences, n_prefix)
        suffix_QS = ids_QL[:, n_prefix:]
        # The cache is consumed by these questions: asked others, it would answer wrongly and without an error.
        cache = fan_out(cache, len(sequences), suffix_QS.shape[1] + self.max_new_tokens)
        return cache, suffix_QS.repeat(batch, 1), mask_QL.repeat(batch, 1)

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
        counts.wasted_prompt_tokens += batch * (len(sequences) * width - asked) if width else 0

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return perf_counter()
