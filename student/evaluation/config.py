"""Parameters of `student.eval`: the section `eval` of params.yaml."""

from typing import Literal

from pydantic import Field

from student.params import Section

Variant = Literal["basicsr", "basicsr_y", "promptir"]


class PaperScore(Section):
    """What the paper states of one test set; without numbers where it states the setting's mean alone."""

    psnr: float | None = None
    ssim: float | None = None
    images: int | None = None
    """How many the test set has: a score over another number of images is not compared."""


class PaperNumbers(Section):
    """A table of the paper (arXiv 2603.01725; PSNR dB, SSIM), to stand beside ours."""

    setting: str
    variant: Variant
    mean: tuple[float, float]
    """PSNR and SSIM, unweighted mean over the test sets."""
    sets: dict[str, PaperScore]
    """By data set of the index."""


class EvalConfig(Section):
    """What is measured, with which variant of the metrics, and what is drawn."""

    model: str | None = None
    """What is measured: a model directory or hub id, or "input" for the degraded input itself; null: paths.student."""

    split: str = "val"
    """Split of the index: val for the samples, test for the recipes of the paper."""

    tasks: list[str] | None = None
    """Only these tasks; null: every task that the index has in this split."""

    variant: Variant = "basicsr"
    """PSNR and SSIM (student/evaluation/metrics.py): basicsr as in the multi-domain tables, promptir as 3T, 5T."""

    crop_border: int = Field(0, ge=0)
    """Pixels left out at every side before comparing; the multi-domain tables leave out none."""

    extra_metrics: list[str] = []
    """Further metrics by name (student/evaluation/extra_metrics.py): lpips, dists, ms_ssim, vif, sam, uqi, ergas."""

    baselines: list[Literal["tv", "nlm", "bm3d", "lanczos", "back_projection"]] = []
    """Simple methods measured beside the student (student/evaluation/baselines.py); `--baselines` takes all."""

    paper: PaperNumbers | None = None
    """The paper's numbers of the same test sets, to stand beside ours."""

    tile: Literal["off", "auto"] | int = "off"
    """Tiles for images too large for the memory, as student.restore takes them. Off: the whole image, as papers do."""

    panels: bool = True
    """Draw before | after | gt panels with error maps for the best, the median and the worst image of every task."""
