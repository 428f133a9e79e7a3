"""How the student is trained: section `train` of `params.yaml`. Imports no torch, so that `--help` stays fast.

The defaults are the published schedule: Adam, lr 4e-4, betas (0.9, 0.99), cosine to 1e-6 over 1,000,000
steps, batches of 12 crops of 128 x 128, clip 1.0, and the loss weights of the paper.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from student.network.config import ModelConfig
from student.params import Section

Weight = Annotated[float, Field(ge=0)]


class LossWeights(Section):
    """Weight of each term; 0 skips its computation. The terms are defined in `student/training/losses.py`."""

    pixel: Weight = 1.0
    fft: Weight = 0.1
    align: Weight = 1.0
    """The distillation: the domain prompt follows the teacher's prior. Needs `model.domain_pool`."""
    diversity: Weight = 1.0
    balance: Weight = 0.1
    contrastive: Weight = 0.1


class TrainConfig(Section):
    """One training run. A step is one optimiser update."""

    # What the run computes: a change of any of these starts another run.
    max_steps: PositiveInt = 1_000_000
    """Shapes the schedule and ends it. To end a run earlier without changing it: `stop_at_step`, `max_minutes`."""
    batch_size: PositiveInt = 12
    """Crops per step, over all processes and accumulated micro-batches: the same parameters train the same student on
    one device or eight."""
    grad_accumulation: PositiveInt = 1
    """Micro-batches per step. Balance and contrastive terms then see one micro-batch (of all processes) at a time."""
    patch_size: PositiveInt = 128
    """Side of the training crops in pixels; smaller images are mirrored at their right and lower edge."""
    augment: bool = True
    """Random flips and quarter turns."""
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's; Adam has none."""
    lr: PositiveFloat = 4e-4
    min_lr: Annotated[float, Field(ge=0)] = 1e-6
    """Where the cosine ends."""
    halve_lr_at: tuple[PositiveInt, ...] = ()
    """In place of the cosine: the learning rate is halved at these steps."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of linear warm-up before the cosine."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Adam's decay rates."""
    clip_norm: PositiveFloat = 1.0
    """Largest gradient norm, over all parameters."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of the weights that is then validated and written out; 0 turns it off. It is
    min(ema_decay, (1 + step) / (10 + step)), so that short runs average too."""
    losses: LossWeights = LossWeights()
    diversity_margin: float = 0.1
    """[paper] tau: prompts less alike than this (cosine) cost nothing."""
    contrastive_temperature: PositiveFloat = 0.1
    shuffle_priors: bool = False
    """[ours] Give every clean image the prior of another one: the control of an ablation. What the teacher says about
    an image then cannot help; what any target of this kind does to training still can."""
    sampling: Literal["balanced", "concatenated"] = "balanced"
    """`balanced`: every dataset has the same share of a batch, however small it is. `concatenated`: every image has, as
    where data sets are put one behind the other."""
    dataset_weights: dict[str, Weight] = {}
    """Relative share of each dataset in a batch (concatenated: how often each of its images is listed), 1 where not
    named, 0 leaves a dataset out."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"
    """# differs from the authors' code: bf16 needs no loss scale and runs on CPUs too; theirs trains in fp16."""
    seed: int = 0
    init_from: str | None = None
    """Directory (or hub id) of a student to start from, as `--init-from` does."""

    # How it is carried out, from here to the end: free to change between interruptions.
    stop_at_step: PositiveInt | None = None
    """End early, with a checkpoint, after this step; a later start resumes."""
    max_minutes: PositiveFloat | None = None
    """End early, with a checkpoint, after so many minutes of this start, set-up included."""
    channels_last: bool = True
    """Memory layout of the convolutions."""
    compile: bool = False
    """`torch.compile` the network."""
    cuda_graph: bool = False
    """Record the step's kernels once and launch them together: for one GPU, where launching them one by one takes
    longer than running them."""
    num_workers: Annotated[int, Field(ge=0)] = 8
    """Processes that decode and crop, per training process; 0 does it in the training process."""
    data_timeout: PositiveFloat = 600
    """Seconds that a batch may take to come before training stops."""
    cache_images: Literal["none", "memory", "memmap"] = "none"
    """Decode every image once: into memory, or into `.npy` files under `cache_dir` that processes share."""
    cache_dir: str = "artifacts/image_cache"
    save_every: PositiveInt = 5_000
    """Steps between checkpoints."""
    keep_last: PositiveInt = 2
    """Checkpoints kept, beside the best by validation PSNR."""
    val_every: Annotated[int, Field(ge=0)] = 5_000
    """Steps between validations; 0 turns them off."""
    val_images: Annotated[int, Field(ge=0)] = 8
    """Validation images per dataset; 0 takes all."""
    val_crop: PositiveInt = 512
    """Validation inside training sees at most this many pixels a side, from the middle."""
    log_every: PositiveInt = 100
    max_bad_steps: PositiveInt = 10
    """Consecutive steps with a non-finite loss or gradient, each of them skipped, after which training stops."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """Names that Accelerate knows: tensorboard, wandb, mlflow, trackio, ..."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.batch_size % self.grad_accumulation:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of grad_accumulation")
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below max_steps {self.max_steps}")
        if self.cuda_graph and (self.grad_accumulation > 1 or self.mixed_precision == "fp16"):
            raise ValueError("cuda_graph needs grad_accumulation 1 and mixed_precision bf16 or no")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} exceeds lr {self.lr}")
        return self


_KEYS = list(TrainConfig.model_fields)
EXECUTION_KEYS = frozenset(_KEYS[_KEYS.index("init_from") :])
"""Keys of `TrainConfig` that do not make it another run. `init_from` is replaced by the weights' sha256."""


def losses_without_pool(losses: LossWeights, domain_pool: bool, has_prompts: bool) -> str | None:
    """What is wrong where a loss that is on has no pool to work on, with the remedy."""
    possible = {"align": domain_pool} | dict.fromkeys(("diversity", "balance", "contrastive"), has_prompts)
    wrong = [f"train.losses.{term}" for term, can in possible.items() if getattr(losses, term) and not can]
    pool = "model.domain_pool" if has_prompts else "model.task_pool or model.domain_pool"
    return f"{', '.join(wrong)}: these losses need {pool}; set them to 0 or the pool to true" if wrong else None


def run_identity(train: TrainConfig, model: ModelConfig, **inputs: str | None) -> dict[str, Any]:
    """Flat `section.key -> value` of everything that decides the numbers of a run; `inputs` are content hashes."""
    sections = (
        ("train.losses.", {term: weight for term, weight in train.losses if weight}),
        ("train.", train.model_dump(mode="json", exclude={*EXECUTION_KEYS, "losses"})),
        ("model.", model.model_dump(mode="json", exclude={"activation_checkpointing"})),
    )
    return {prefix + key: value for prefix, values in sections for key, value in values.items()} | inputs
