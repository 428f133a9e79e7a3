"""The model card: README.md beside a student's weights."""

from typing import Any

from student.network.config import ModelConfig

COLUMNS = ("psnr", "psnr_input", "ssim", "ssim_input", "n")
HEAD = """---
library_name: teachonce
pipeline_tag: image-to-image
tags: [image-restoration, all-in-one-restoration, distillation, arxiv:2603.01725]
---

# An all-in-one image restoration student

One network for several kinds of degradation and several domains. A vision-language teacher described the
clean training images once; its descriptions were distilled into this network's prompts
(DATPRL-IR, arXiv 2603.01725). No language model is needed to use it.

```python
from student.model import Student

student = Student.from_pretrained("THIS_FOLDER_OR_ID")
restored = student(lq)  # [B, 3, H, W], float32 RGB in [0, 1]
```

| | |
| --- | --- |
"""


def model_card(config: ModelConfig, parameters: int, metrics: dict[str, Any] | None, details: dict[str, Any]) -> str:
    """Markdown with YAML front matter. `metrics`: an evaluation's results.json; `details`: extra rows, name → value."""
    pools = [name for name, on in (("task", config.task_pool), ("domain", config.domain_pool)) if on]
    rows = {
        "Parameters": f"{parameters / 1e6:.2f} M",
        "Backbone": f"{config.backbone}, width {config.width}",
        "Prompt pools": " and ".join(pools) or "none",
        "Fusion": config.fusion if pools else "none",
        **details,
    }
    card = HEAD + "".join(f"| {name} | {value} |\n" for name, value in rows.items())
    if metrics:
        scores = [*metrics["tasks"].items(), ("mean over tasks", metrics["overall"])]
        card += f"\n## Results\n\nMetric variant `{metrics['variant']}`; `_input` is the degraded image itself.\n\n"
        card += f"| task | {' | '.join(COLUMNS)} |\n| --- |{' --- |' * len(COLUMNS)}\n"
        card += "".join(_row(task, values) for task, values in scores)
    return card


def _row(name: str, values: dict[str, Any]) -> str:
    cells = [values.get(key, "") for key in COLUMNS]
    return f"| {name} | {' | '.join(f'{c:.4g}' if isinstance(c, float) else str(c) for c in cells)} |\n"
