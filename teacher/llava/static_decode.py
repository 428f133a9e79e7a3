"""Greedy decoding as a GPU likes it: tensors that stay where they are, one CUDA graph a step, no wait for a token.

The questions of an image share one row of the cache: its slots hold the prefix, then every question's own tokens, then
what is answered, one slot a question and step. A mask lets each question see the prefix and what is its own. So the
prefix is kept and read once an image, not once a question. The host looks every few steps who has ended.

B images, Q questions, P prefix tokens, S suffix tokens of all questions, T new tokens, L slots:
P + S + Q·T, rounded up
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

DEVICES = {"cuda"}
STEPS_UNWATCHED = 8
"""Between two looks at who has ended."""
ALIGNED = 16
"""Slots come in multiples of this: SDPA would copy another mask at every layer."""


class StaticLayer(DynamicLayer):
    """One layer's keys and values `[B, heads, L, dim]`. `slots` and `rows` of `place` say where the next go."""

    def __init__(self, place: StaticDecoder):
        super().__init__()
        self.place = place

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        place, rows = self.place, len(key_states)
        if not self.is_initialized:
            batch, heads, _, dim = key_states.shape
            # Zeros: what is masked is multiplied by 0, which leaves a nan what it is.
            self.keys = key_states.new_zeros(place.images, heads, place.length, dim)
            self.values = value_states.new_zeros(place.images, heads, place.length, value_states.shape[-1])
            self.is_initialized = True
        if place.slots is None:
            for kept, states in ((self.keys, key_states), (self.values, value_states)):
                kept[:rows, :, : place.prefix] = states
                kept[:rows, :, place.prefix :].zero_()  # of the images before, which may have been nan
            return key_states, value_states
        keys, values = self.keys[:rows], self.values[:rows]
        keys.index_copy_(2, place.slots, key_states)
        values.index_copy_(2, place.slots, value_states)
        return keys, values

    def get_seq_length(self) -> int:
        return 0 if self.place.slots is None else self.place.prefix

    def keep(self, index: Tensor) -> None:
        """These rows become the first ones."""
        for kept in (self.keys, self.values):
            kept[: len(index)] = kept[index]


class StaticDecoder:
    """Answers of `model` to the questions `sequences` (ids, `prefix` of which they share) about up to `images` images.

    Where `graphs`, a step is recorded once for each number of rows and replayed from then on.
    """

    def __init__(
        self, model, sequences: Sequence[Sequence[int]], prefix: int, images: int, *, end_ids: set[int],
        max_new_tokens: int, min_new_tokens: int, graphs: bool,
    ):  # fmt: skip
        device, dtype, questions = model.device, model.dtype, len(sequences)
        self.model, self.images, self.prefix, self.end_ids = model, images, prefix, end_ids
        self.max_new_tokens, self.min_new_tokens = max_new_tokens, min_new_tokens
        self.slots: Tensor | None = None
        lengths = [len(ids) - prefix for ids in sequences]
        asked = prefix + sum(lengths)
        self.length = asked + questions * max_new_tokens
        self.length += -self.length % ALIGNED
        self.cache = Cache(layers=[StaticLayer(self) for _ in range(model.config.get_text_config().num_hidden_layers)])
        self._graphs: dict[int, torch.cuda.CUDAGraph | None] = {}
        self._records = graphs
        # What does not change. The questions stand one behind the other.
        owner_S = torch.tensor([q for q, length in enumerate(lengths) for _ in range(length)])
        order_S = torch.tensor([i for length in lengths for i in range(length)])
        seen_SL = torch.zeros(len(owner_S), self.length, dtype=torch.bool)
        seen_SL[:, :prefix] = True
        seen_SL[:, prefix:asked] = (owner_S[:, None] == owner_S) & (order_S[:, None] >= order_S)
        self._last_Q = torch.tensor(lengths).cumsum(0) - 1
        self._mask_SL = torch.zeros(seen_SL.shape, dtype=dtype).masked_fill(~seen_SL, -torch.inf).to(device)
        self._first_mask_QL = self._mask_SL[self._last_Q].clone()
        self._prefix_P = torch.tensor(sequences[0][:prefix], device=device)
        self._suffix_S = torch.tensor([token for ids in sequences for token in ids[prefix:]], device=device)
        self._position_S = (prefix + order_S).to(device)
        self._slots_S = torch.arange(prefix, asked, device=device)
        self._first_position_Q = torch.tensor([len(ids) for ids in sequences], device=device)
        self._first_slots_Q = torch.arange(asked, asked + questions, device=device)
        self._last_Q, self._ends = self._last_Q.to(device), torch.tensor(sorted(end_ids), device=device)
        # What a step reads and writes.
        self._mask_QL, self._position_Q = self._first_mask_QL.clone(), self._first_position_Q.clone()
        self._slots_Q, self._step = self._first_slots_Q.clone(), torch.zeros(1, dtype=torch.long, device=device)
        self._token_BQ = torch.zeros(images, questions, dtype=torch.long, device=device)
        self._ended_BQ = torch.zeros(images, questions, dtype=torch.bool, device=device)
        self._tokens_BQT = torch.zeros(images, questions, max_new_tokens, dtype=torch.long, device=device)

    def prefill(self, inputs: dict[str, Tensor], batch: int) -> None:
        """The prefix, the questions, and their first tokens. `inputs` is what the model takes of `batch` images."""
        self.slots = None
        self.model.model(
            input_ids=self._prefix_P.repeat(batch, 1), **inputs, past_key_values=self.cache, use_cache=True
        )
        self._mask_QL.copy_(self._first_mask_QL)
        self._position_Q.copy_(self._first_position_Q)
        self._slots_Q.copy_(self._first_slots_Q)
        self._step.zero_()
        self._ended_BQ.fill_(True)
        self._ended_BQ[:batch] = False
        self._forward(
            self._suffix_S.expand(batch, -1), self._position_S, self._slots_S, self._mask_SL, self._last_Q
        )  # fmt: skip

    def decode(self, batch: int) -> tuple[list[list[int]], int]:
        """After `prefill`. As `greedy_decode.greedy`; an image's questions come one after the other."""
        held, rows = list(range(batch)), self._fitting(batch)  # `held`: the image of each row
        done: dict[int, list[list[int]]] = {}
        slots, step = batch, 1
        while step < self.max_new_tokens:
            if step % STEPS_UNWATCHED == 0:
                alive = [row for row, ended in enumerate(self._ended_BQ[: len(held)].tolist()) if not all(ended)]
                if not alive:
                    break
                if (fewer := self._fitting(len(alive))) < rows:
                    done |= zip(held, self._tokens_BQT[: len(held), :, :step].tolist(), strict=True)
                    self._keep(alive + [row for row in range(rows) if row not in alive][: fewer - len(alive)])
                    held, rows = [held[row] for row in alive], fewer
            self._replay(rows)
            slots, step = slots + rows, step + 1
        done |= zip(held, self._tokens_BQT[: len(held), :, :step].tolist(), strict=True)
        answers = [self._until_end(tokens) for image in range(batch) for tokens in done[image]]
        return answers, slots * len(self._last_Q) - sum(map(len, answers))

    def _until_end(self, tokens: list[int]) -> list[int]:
        return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in self.end_ids), len(tokens))]

    def _fitting(self, batch: int) -> int:
        """The least of `images`, its half, its quarter and so on that is not less than `batch`."""
        rows = self.images
        while (half := (rows + 1) // 2) >= batch and half < rows:
            rows = half
        return rows

    def _keep(self, rows: list[int]) -> None:
        """These rows become the first ones; their images' answers go on."""
        index = torch.tensor(rows, device=self._token_BQ.device)
        for layer in self.cache.layers:
            layer.keep(index)
        for kept in (self._token_BQ, self._ended_BQ, self._tokens_BQT):
            kept[: len(index)] = kept[index]

    def _replay(self, rows: int) -> None:
        """A step of the first `rows` rows. Before one is recorded, an ordinary one chooses algorithms."""
        if not self._records or rows not in self._graphs:
            self._next(rows)
            self._graphs[rows] = None
            return
        with torch.cuda.device(self._step.device):  # of several processes, most have another than the first
            graph = self._graphs[rows]
            if graph is None:
                self._graphs[rows] = graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._next(rows)
            graph.replay()

    def _next(self, rows: int) -> None:
        """Reads the last tokens of the first `rows` rows, and chooses the next."""
        self._mask_QL.scatter_(1, self._slots_Q[:, None], 0)
        self._forward(self._token_BQ[:rows], self._position_Q, self._slots_Q, self._mask_QL, 0)
        self._position_Q += 1
        self._slots_Q += len(self._slots_Q)

    def _forward(
        self, ids_BX: Tensor, position_X: Tensor, slots_X: Tensor, mask_XL: Tensor, keep: Tensor | int
    ) -> None:
        """Tokens of every row at equal places; chooses the next of those that `keep` names (0: all)."""
        self.slots, rows = slots_X, len(ids_BX)
        logits_BQV = self.model(
            input_ids=ids_BX, position_ids=position_X.expand(rows, -1), attention_mask=mask_XL[None, None],
            past_key_values=self.cache, use_cache=True, logits_to_keep=keep,
        ).logits  # fmt: skip
        if self.min_new_tokens:
            early = self._step < self.min_new_tokens
            logits_BQV[..., self._ends] = logits_BQV[..., self._ends].masked_fill(early, -torch.inf)
        chosen_BQ = logits_BQV.argmax(-1)
        self._token_BQ[:rows] = chosen_BQ
        self._tokens_BQT[:rows].index_copy_(2, self._step, chosen_BQ[..., None])
        self._ended_BQ[:rows].logical_or_((chosen_BQ[..., None] == self._ends).any(-1))
        self._step += 1


def decodes(model) -> bool:
    """Whether a `StaticDecoder` suits `model`: on a GPU, where every layer attends to all that came before."""
    from transformers import DynamicCache

    layers = DynamicCache(config=model.config.get_text_config()).layers
    return model.device.type in DEVICES and all(type(layer) is DynamicLayer for layer in layers)


def records(model) -> bool:
    """Whether a step of `model` can be a CUDA graph. bitsandbytes' int8 product asks the device for outliers."""
    int8 = any(type(module).__name__ == "Linear8bitLt" for module in model.modules())
    return model.device.type == "cuda" and not int8
