"""The `caption` section of `params.yaml`: who describes the clean images, with which questions, and how carefully."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from student.params import Section
from teacher.identity import QUANTIZATIONS

# The five perspectives of the paper, asked separately so that no answer is cut by the text encoder's 77 tokens [ours].
PERSPECTIVES = {
    "content": "What is the content of this image? Answer in one sentence.",
    "color": "How rich are the colors of this image? Answer in one sentence.",
    "object": "What is the category of the main object in this image? Answer in one sentence.",
    "brightness": "How bright is this image? Answer in one sentence.",
    "viewpoint": "From which camera viewpoint was this image taken? Answer in one sentence.",
}


TEACHERS = {
    "transformers": "teacher.llava.captioner:Captioner",
    "server": "teacher.server:ServerCaptioner",
    "vllm": "teacher.vllm_engine:VllmCaptioner",
}
"""A teacher's name in `params.yaml` → where its class is (`teacher.teacher.Teacher`)."""


def _teacher(name: str) -> str:
    if name not in TEACHERS:
        raise ValueError(f"unknown teacher; choose from {', '.join(TEACHERS)}")
    return name


class CaptionConfig(Section):
    """Captioning. Keys marked *identity* change captions and so their fingerprint; all others never redo work."""

    teacher: Annotated[str, AfterValidator(_teacher)] = "transformers"
    """*identity*: what runs the model: `transformers` or `vllm` in this process, or a `server` (docs/teacher.md)."""
    model: str = Field("teacher/mini", min_length=1)
    """*identity* (by content): a checkpoint: hub id or local directory, e.g. `llava-hf/llava-1.5-7b-hf`; of a server,
    the name by which it serves the model."""
    revision: str | None = None
    """*identity*: commit, tag or branch of a hub id; resolved to a commit. Of a server: what you say it runs."""
    server: str | None = None
    """Where the server is, such as `http://127.0.0.1:8000/v1`."""
    server_options: dict[str, Any] = {}
    """*identity*: merged into each request to a server, such as `{add_special_tokens: true}` for LLaVA in vLLM."""
    quantization: Literal["nf4", "nf4-dequantized", "int8", "fp8", "none"] = "nf4"
    """*identity*: weights of the language model. `nf4-dequantized` has NF4's weights at bf16's speed and memory; a GPU
    with room for it computes `nf4` in this way too, and a run's provenance says so (`weights: expanded`)."""
    perspectives: Annotated[dict[str, str], Field(min_length=1)] = PERSPECTIVES
    """*identity*, each for itself: name -> question. Changing one re-captions that perspective only."""
    max_new_tokens: int = Field(64, ge=1)
    """*identity*: longer answers are cut and marked `finish_reason = length`."""
    padding: Literal["square", "crop"] = "square"
    """*identity*: show the whole picture padded to a square (as LLaVA-1.5 was trained), or its centre crop."""
    image_side: int | None = Field(None, ge=8, le=4096)
    """*identity*: side of that square in pixels; null: what the model looks at, and 336 for a server."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of what is not quantised; `auto`: bfloat16 on a GPU, float32 on a CPU."""
    device: str = "auto"
    """`auto`: this process's GPU if there is one, else the CPU."""
    batch_images: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Images decoded together; `auto` measures a few on a GPU, takes what fits, and halves it when memory runs out."""
    quantized_cache: str | None = None
    """A directory that keeps the quantised weights, so that only the first start quantises a large model."""
    workers: int = Field(2, ge=1)
    """Processes that read and decode images while the model works."""
    max_pixels: int = Field(200_000_000, ge=1)
    """An image with more pixels is a `bad_image`: a decompression bomb, or a mistake."""
    image_timeout_s: float = Field(60.0, gt=0)
    """An image that takes longer to read and decode is a `bad_image`, and its worker is replaced."""
    flush_images: int = Field(1000, ge=1)
    """Captioned images are written at the latest after this many ..."""
    flush_seconds: float = Field(60.0, gt=0)
    """... or this much time: what a crash can cost."""
    max_error_fraction: float = Field(0.05, ge=0, le=1)
    """The stage ends with an error while more than this share of the index's images has `status = error`."""

    @field_validator("perspectives")
    @classmethod
    def _names_and_questions(cls, perspectives: dict[str, str]) -> dict[str, str]:
        for name, prompt in perspectives.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"the name {name!r} must be lower-case letters, digits and _")
            if not prompt.strip():
                raise ValueError(f"the question of {name!r} is empty")
        return perspectives

    @model_validator(mode="after")
    def _server(self) -> "CaptionConfig":
        if self.teacher == "server" and not self.server:
            raise ValueError("teacher server needs its address: caption.server, such as http://127.0.0.1:8000/v1")
        if self.teacher != "server" and (self.server or self.server_options):
            raise ValueError("server and server_options go with caption.teacher: server")
        known = {"vllm": ("none", "fp8", "nf4"), "transformers": QUANTIZATIONS}.get(self.teacher)
        if known and self.quantization not in known:
            raise ValueError(f"quantization of teacher {self.teacher}: {', '.join(known)}, not {self.quantization}")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """Keyword arguments of `teacher.identity.caption_identities`."""
        keys = "teacher model revision quantization perspectives max_new_tokens padding image_side".split()
        keys += ["server_options"] * (self.teacher == "server")
        return {key: getattr(self, key) for key in keys}
