"""The student: one restoration network with distilled prompts, its weights and its model card (arXiv 2603.01725).

student = Student.from_pretrained("artifacts/student")
restored = student(lq)                                # [B, 3, H, W], float32 RGB in [0, 1]
"""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard, PyTorchModelHubMixin, hf_hub_download
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from student.files import in_place_of, write_file
from student.network.config import BACKBONES, ModelConfig
from student.network.fusion import Condition
from student.network.model_card import model_card
from student.network.prompts import PromptBranch, PromptPool, Prompts
from student.network.u_shape import UShape

WEIGHTS = "model.safetensors"


class Student(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="teachonce",
    pipeline_tag="image-to-image",
    tags=["image-restoration"],
    coders={ModelConfig: (lambda config: config.model_dump(mode="json"), lambda values: ModelConfig(**values))},
):
    """All-in-one image restoration; see `ModelConfig` for its shapes.

    `save_pretrained(DIR, model_card_kwargs={"metrics": ...})`, `from_pretrained(DIR_OR_ID)` and `push_to_hub(ID)` are
    the Hugging Face ones: config.json, model.safetensors and README.md.
    """

    embedding_fingerprint: str | None = None
    """Of the release whose priors the domain prompts were aligned with, as its manifest has it; None: not known."""

    def __init__(self, config: ModelConfig):
        if config.prompt_dim is None:
            raise ValueError("prompt_dim is null: only the trainer can take it from a release; give a number")
        super().__init__()
        self.config = config
        self.backbone: UShape = resolve_name(BACKBONES[config.backbone])(config)
        if config.has_prompts:
            self.prompts = PromptBranch(config, self.backbone.first_channels, self.backbone.deepest_channels)
        if config.zero_init_output:
            for parameter in self.backbone.output.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, lq: Tensor, prompts: Prompts | None = None, return_prompts: bool = False
    ) -> Tensor | tuple[Tensor, Prompts]:
        """Restore `lq` [B, 3, H, W], float RGB in [0, 1], any H, W ≥ 8. The result is not clamped.

        `prompts`: use these, from `encode_prompts` (of the whole image, when `lq` is a tile of it), instead of this
        input's own. `return_prompts`: return them too, for the losses that look at them. Raises ValueError on
        another shape. `student.restoration.restorer.Restorer` runs the same function faster and in less memory.
        """
        first_BHWC = self._embed(lq)
        deepest_BHWC, skips = self.backbone.encode(first_BHWC)
        if prompts is None:
            prompts = self._prompts(first_BHWC, deepest_BHWC)
        residual_BHWC = self.backbone.decode(deepest_BHWC, skips, self._conditions(prompts))
        restored = lq + residual_BHWC.permute(0, 3, 1, 2)[..., : lq.shape[2], : lq.shape[3]]
        return (restored, prompts) if return_prompts else restored

    def encode_prompts(self, lq: Tensor) -> Prompts:
        """The prompts of `lq` [B, 3, H, W] without restoring it: the encoder runs, the decoder does not."""
        first_BHWC = self._embed(lq)
        return self._prompts(first_BHWC, self.backbone.encode(first_BHWC)[0])

    def pools(self) -> dict[str, PromptPool]:
        """The pools that are on, by name: "task", "domain"."""
        names = [name for name in ("task", "domain") if getattr(self.config, f"{name}_pool")]
        return {name: getattr(self.prompts, f"{name}_pool") for name in names}

    def _embed(self, lq: Tensor) -> Tensor:
        if lq.ndim != 4 or lq.shape[1] != 3 or min(lq.shape[2:]) < 8:
            raise ValueError(f"the input must be [B, 3, H, W] with H and W of at least 8, not {list(lq.shape)}")
        height, width = (-side % self.config.stride for side in lq.shape[2:])
        return self.backbone.embed(F.pad(lq, (0, width, 0, height)).permute(0, 2, 3, 1).contiguous())

    def _prompts(self, first_BHWC: Tensor, deepest_BHWC: Tensor) -> Prompts:
        if not self.config.has_prompts:
            return Prompts(None, None, None)
        return self.prompts(first_BHWC.permute(0, 3, 1, 2), deepest_BHWC.permute(0, 3, 1, 2))

    def _conditions(self, prompts: Prompts) -> list[Condition]:
        if not self.config.has_prompts:
            return [()] * len(self.backbone.prompted_blocks())
        with torch.autocast(prompts.fused.device.type, enabled=False):  # for the reason given in PromptBranch
            inputs = self.prompts.tokens(prompts) if self.config.fusion == "tokens" else (prompts.fused,)
            return self.backbone.conditions(*inputs)

    def generate_model_card(self, metrics: dict[str, Any] | None = None, **details: Any) -> ModelCard:
        """The README.md of `save_pretrained`; `metrics` as in an evaluation's results.json, `details` as extra rows."""
        parameters = sum(p.numel() for p in self.parameters())
        return ModelCard(model_card(self.config, parameters, metrics, details))

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        told = {"embedding_fingerprint": self.embedding_fingerprint} if self.embedding_fingerprint else None
        write_file(save_directory / WEIGHTS, save(weights, told))

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: ModelConfig | None = None, map_location: str = "cpu", **hub: Any
    ) -> "Student":
        if config is None:
            raise FileNotFoundError(f"{model_id}: no config.json there; is it a folder made by save_pretrained?")
        if Path(model_id).is_dir():
            file = str(Path(model_id, WEIGHTS))
            if not Path(file).is_file():
                raise FileNotFoundError(f"{file}: no such file; is {model_id} a folder made by save_pretrained?")
        else:
            file = hf_hub_download(model_id, WEIGHTS, **hub)
        with open(file, "rb") as content:
            if reason := in_place_of(content.read(200), "the weights"):
                raise ValueError(f"{file}: {reason}")
        with torch.device("meta"):  # no memory, and no random weights, before the file has proved to hold them
            student = cls(config)
        # A copy: where the file puts a tensor at an odd address, products of it round in another way.
        weights = {n: tensor.to(torch.float32, copy=True) for n, tensor in load_file(file, device=map_location).items()}
        student.load_state_dict(weights, assign=True)
        with safe_open(file, "pt") as header:
            student.embedding_fingerprint = (header.metadata() or {}).get("embedding_fingerprint")
        return student.eval()
