"""The shape of the student network: section `model` of `params.yaml`. Imports no torch, so that `--help` stays fast."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from student.params import Section

POOL_HEADS = 8
"""Heads of the published fusion of the two prompt representations; `prompt_dim` is a multiple of it."""

BACKBONES = {"restormer": "student.network.restormer:Restormer", "nafnet": "student.network.nafnet:NAFNet"}
"""A backbone's name in `params.yaml` → where its class is: a `student.network.u_shape.UShape` built from the config."""

Count = Annotated[int, Field(gt=0, le=1000)]
"""Bounded: a configuration may come from a stranger, and is built before its weights are looked at."""
Blocks = Annotated[tuple[Count, ...], Field(min_length=1, max_length=8)]


def _backbone(name: str) -> str:
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone; choose from {', '.join(BACKBONES)}")
    return name


class ModelConfig(Section):
    """Backbone, prompt pools and fusion. The defaults are the published multi-domain Restormer (53.13 M parameters).

    Levels are counted from full resolution downwards: `encoder_blocks[i]` and `decoder_blocks[i]` work at 1/2^i of the
    image's sides and, before any concatenation, at `width * 2^i` channels.
    """

    backbone: Annotated[str, AfterValidator(_backbone)] = "restormer"
    width: Annotated[int, Field(ge=4, le=4096, multiple_of=2)] = 48
    """Channels after the first convolution."""
    encoder_blocks: Blocks = (4, 6, 6)
    """Blocks per level; as many levels, as many downsamplings. They see no prompt."""
    latent_blocks: Count = 8
    """Blocks at the lowest resolution."""
    decoder_blocks: Blocks = (6, 6, 4)
    """Blocks per level, finest first, like `encoder_blocks`."""
    refinement_blocks: Annotated[int, Field(ge=0, le=1000)] = 4
    """Restormer's extra blocks at full resolution. NAFNet has none: set 0."""
    heads: Blocks = (1, 2, 4, 8)
    """Restormer's attention heads per level, the latent level last; others ignore them."""
    ffn_expansion: Annotated[float, Field(gt=0, le=64)] = 2.66
    """Restormer's hidden channels of the feed-forward part, as a multiple; others ignore it."""

    task_pool: bool = True
    """Prompts chosen by what is wrong with the image (the deepest encoder features)."""
    task_pool_size: Annotated[int, Field(ge=2, le=100_000)] = 15
    task_top_k: PositiveInt = 3
    domain_pool: bool = True
    """Prompts chosen by what the image shows (the first features); the teacher's prior is distilled into them."""
    domain_pool_size: Annotated[int, Field(ge=2, le=100_000)] = 15
    domain_top_k: PositiveInt = 5
    prompt_len: Count = 2
    """Tokens of one prompt value."""
    prompt_dim: Annotated[int, Field(gt=0, le=65_536, multiple_of=POOL_HEADS)] | None = 1024
    """Dimension of keys, values and queries: the dimension of the teacher's embedding. null: the trainer takes it from
    the release."""
    pool_fusion: Literal["attention", "concat"] = "attention"
    """How the two representations become one. Without effect unless both pools are on."""
    fusion: Literal["broadcast", "modulation", "concat", "tokens"] = "broadcast"
    """How a block takes the prompt in. `broadcast` is the published cross-attention over one token, collapsed exactly;
    `modulation` and `concat` are the published alternatives; `tokens` attends over the un-aggregated prompt tokens."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """In the fusion of the two pools only; the published backbones have none."""
    selection_noise: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on the similarities that choose the top-k prompts in training."""
    zero_init_output: bool = True
    """[ours] Start the last convolution at zero: an untrained student returns its input, and never starts by making
    images worse. The published code starts from random weights: set false for that."""
    domain_init: Literal["random", "kmeans"] = "random"
    """`kmeans`: the trainer starts the domain pool from centroids of the caption embeddings."""
    activation_checkpointing: bool = False
    """Recompute every block in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        levels = len(self.encoder_blocks)
        if len(self.decoder_blocks) != levels:
            lists = f"encoder_blocks {list(self.encoder_blocks)} and decoder_blocks {list(self.decoder_blocks)}"
            raise ValueError(f"{lists} need the same length")
        for pool in ("task", "domain"):
            top_k, size = getattr(self, f"{pool}_top_k"), getattr(self, f"{pool}_pool_size")
            if top_k > size:
                raise ValueError(f"{pool}_top_k {top_k} exceeds {pool}_pool_size {size}; use at most {size}")
        if self.backbone == "nafnet" and self.refinement_blocks:
            raise ValueError(f"refinement_blocks {self.refinement_blocks}: NAFNet has none; set 0")
        if self.backbone == "restormer":
            self._check_restormer(levels)
        if self.fusion == "tokens" and self.pool_fusion == "concat" and self.task_pool and self.domain_pool:
            raise ValueError("fusion tokens needs tokens of one dimension: set pool_fusion: attention")
        return self

    def _check_restormer(self, levels: int) -> None:
        if len(self.heads) != levels + 1:
            raise ValueError(f"heads {list(self.heads)} needs {levels + 1} entries: one a level and one for latent")
        if int(self.width * self.ffn_expansion) < 1:
            raise ValueError(f"ffn_expansion {self.ffn_expansion} leaves no hidden channel at width {self.width}")
        for level, heads in enumerate(self.heads):
            # The finest decoder level and the refinement work at twice `width`, which its heads then divide too.
            if (self.width * 2**level) % heads:
                raise ValueError(f"heads[{level}] {heads} does not divide its {self.width * 2**level} channels")

    @property
    def has_prompts(self) -> bool:
        return self.task_pool or self.domain_pool

    @property
    def fused_dim(self) -> int:
        """Dimension of the representation that the blocks receive."""
        both = self.task_pool and self.domain_pool
        return self.prompt_dim * (2 if both and self.pool_fusion == "concat" else 1)

    @property
    def stride(self) -> int:
        """Inputs are padded to a multiple of this."""
        return 2 ** len(self.encoder_blocks)
