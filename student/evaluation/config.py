"""Parameters of `student.eval`: the section `eval` of params.yaml."""

from typing import Literal

from pydantic import Field

from student.params import Section


class EvalConfig(Section):
    """What is measured, with which variant of the metrics, and what is drawn."""

    model: str | None = None
    """What is measured: a model directory or hub id, or "input" for the degraded input itself; null: paths.student."""

    split: str = "val"
    """Split of the index: val for the samples, test for the recipes of the paper."""

    tasks: list[str] | None = None
    """Only these tasks; null: every task that the index has in this split."""

    variant: Literal["basicsr", "basicsr_y", "promptir"] = "basicsr"
    """PSNR and SSIM (student/evaluation/metrics.py): basicsr as in the multi-domain tables, promptir as 3T, 5T."""

    crop_border: int = Field(0, ge=0)
    """Pixels left out at every side before comparing; the multi-domain tables leave out none."""

    extra_metrics: list[str] = []
    """Further metrics by name (student/evaluation/extra_metrics.py): lpips, dists, ms_ssim, vif, sam, uqi, ergas."""

    baselines: list[Literal["tv", "nlm", "bm3d", "lanczos", "back_projection"]] = []
    """Simple methods measured beside the student (student/evaluation/baselines.py); `--baselines` takes all."""

    setting: Literal["md-6t", "md-7t", "md-8t", "md-9t", "natural-3t", "natural-5t", "cdd11"] | None = None
    """Setting of the paper whose numbers stand beside ours (student/evaluation/paper_numbers.py); natural and
    cdd11 need promptir."""

    tile: Literal["off", "auto"] | int = "off"
    """Tiles for images too large for the memory, as student.restore takes them. Off: the whole image, as papers do."""

    panels: bool = True
    """Draw before | after | gt panels with error maps for the best, the median and the worst image of every task."""

    resume: bool = True
    """Keep per-image results of the same model, inputs and metrics from an earlier run that was stopped."""
