"""The model card: README.md beside a student's weights."""

from typing import Any

from student.network.config import ModelConfig

COLUMNS = ("psnr", "psnr_input", "ssim", "ssim_input", "n")


def model_card(config: ModelConfig, parameters: int, metrics: dict[str, Any] | None, details: dict[str, Any]) -> str:
    """Markdown with YAML front matter. `metrics` as in artifacts/metrics.json; `details`: extra rows, name → value."""
    pools = [name for name, on in (("task", config.task_pool), ("domain", config.domain_pool)) if on]
    rows = {
        "Parameters": f"{parameters / 1e6:.2f} M",
        "Backbone": f"{config.backbone}, width {config.width}",
        "Prompt pools": " and ".join(pools) or "none",
        "Fusion": config.fusion if pools else "none",
        **details,
    }
    text = [
        "---",
        "library_name: teachonce",
        "pipeline_tag: image-to-image",
        "tags: [image-restoration, all-in-one-restoration, distillation, arxiv:2603.01725]",
        "---",
        "",
        "# An all-in-one image restoration student",
        "",
        "One network for several kinds of degradation and several domains. A vision-language teacher described the",
        "clean training images once; its descriptions were distilled into this network's prompts",
        "(DATPRL-IR, arXiv 2603.01725). No language model is needed to use it.",
        "",
        "```python",
        "from student.model import Student",
        "",
        'student = Student.from_pretrained("THIS_FOLDER_OR_ID")',
        "restored = student(lq)  # [B, 3, H, W], float32 RGB in [0, 1]",
        "```",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
    ]
    if metrics:
        text += [
            "## Results",
            "",
            f"Metric variant `{metrics['variant']}`; `_input` is the degraded image itself.",
            "",
            f"| task | {' | '.join(COLUMNS)} |",
            f"| --- |{' --- |' * len(COLUMNS)}",
            *(_row(task, values) for task, values in metrics["tasks"].items()),
            _row("mean over tasks", metrics["overall"]),
            "",
        ]
    return "\n".join(text)


def _row(name: str, values: dict[str, Any]) -> str:
    cells = [
        f"{values[key]:.4g}" if isinstance(values.get(key), float) else str(values.get(key, "")) for key in COLUMNS
    ]
    return f"| {name} | {' | '.join(cells)} |"
