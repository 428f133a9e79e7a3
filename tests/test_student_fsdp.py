"""FSDP2 on two gloo processes: the same numbers as one process, and everything else that a run does."""

import os

import pytest
import torch
import toy_training as toy

from student.model import Student

RUN = {"max_steps": 20, "lr": 4e-4, "val_every": 10, "ema_decay": 0.9, "seed": 3}


def shard_on_cpu() -> None:
    """What `accelerate launch --use_fsdp --fsdp_version 2` sets up on GPUs, on CPUs.

    Accelerate 1.15 keeps FSDP from CPUs in one line, where it names the kind of distribution; everything after that is
    its and torch's own code, which knows gloo.
    """
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    initialise = AcceleratorState.__init__

    def sharded(self, *arguments, fsdp_plugin=None, **options):
        first = not self.initialized
        initialise(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if first:
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = sharded


def sharded(folder, **train) -> None:
    toy.finish(toy.start(folder, toy.STILL, processes=2, before=shard_on_cpu, **(RUN | train)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run on one process and sharded over two."""
    folders = [tmp_path_factory.mktemp(name) for name in ("alone", "sharded")]
    for folder in folders:
        toy.make_data(folder)
    toy.finish(toy.start(folders[0], toy.STILL, **RUN))
    sharded(folders[1])
    return folders


@pytest.mark.slow
def test_two_shards_equal_one_process(runs):
    alone, split = (toy.losses(folder / "student") for folder in runs)
    assert len(alone) == len(split) == 20
    toy.assert_losses_near(split, alone, 1e-5)
    for row, other in zip(split, alone, strict=True):
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_shards_are_published_whole_and_averaged(runs):
    alone, split = (toy.weights(folder / "student") for folder in runs)
    torch.testing.assert_close(split, alone, atol=1e-3, rtol=1e-3)
    assert Student.from_pretrained(str(runs[1] / "student"))(torch.rand(1, 3, 16, 16)).isfinite().all()
    shards = sorted(path.name for path in toy.newest(runs[1] / "student").glob("ema-*"))
    assert shards == ["ema-00000.safetensors", "ema-00001.safetensors"]


@pytest.mark.slow
def test_a_sharded_run_resumes_exactly_and_only_as_it_began(runs, tmp_path):
    toy.beside(runs[1], tmp_path)
    sharded(tmp_path, stop_at_step=7)
    (alone,) = toy.start(tmp_path, toy.STILL, name="alone", **RUN)
    toy.finish([alone], code=1)
    assert "step-00000007: it was written by FSDP2 over 2 processes" in (tmp_path / "alone-0.txt").read_text()
    sharded(tmp_path)
    assert toy.losses(tmp_path / "student") == toy.losses(runs[1] / "student")
    assert toy.same(toy.weights(tmp_path / "student"), toy.weights(runs[1] / "student"))


@pytest.mark.slow
def test_bf16_keeps_parameters_input_and_prompts_in_fp32(runs, tmp_path):
    """As autocast does without FSDP: the losses then equal those of one process in bf16."""
    folders = [toy.beside(runs[1], tmp_path / name) for name in ("alone", "split")]
    toy.finish(toy.start(folders[0], toy.STILL, **(RUN | {"mixed_precision": "bf16", "stop_at_step": 3})))
    sharded(folders[1], mixed_precision="bf16", stop_at_step=3)
    toy.assert_losses_near(*(toy.losses(folder / "student") for folder in folders), 2e-4)
