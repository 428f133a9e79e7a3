"""Train on a GPU that is not there: `python fake_gpu.py FOLDER [FAULT]` prints what a real one would have had to do.

Tensors have shapes, types and a device, but no storage (FakeTensorMode). So what mixes devices fails, and so does
whatever needs a value: `.item()`, `float(tensor)`, `if tensor`. The two ways to get values that the trainer has are
answered with zeros, and counted. A FAULT, "waits" or "misplaced", is put into the losses, to see it found.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration as registration
from torch.utils.data import DataLoader
from toy_training import make_data, params

from student.train import train
from student.training import run, setup, weights
from student.training.losses import compute_losses

counts = {"tolist": 0, "numpy": 0}


def stand_in(name, answer):
    def method(tensor, *_arguments, **_options):
        counts[name] += 1
        return answer(tensor)

    setattr(FakeTensor, name, method)


def main(folder: Path, fault: str | None = None) -> dict:
    registration._DummyBackendModule.get_amp_supported_dtype = lambda self: [torch.bfloat16]
    registration._setup_privateuseone_for_python_backend("gpu")
    device, mode = torch.device("gpu:0"), FakeTensorMode(allow_non_fake_inputs=True)
    Accelerator.device = property(lambda self: device)
    stand_in("tolist", lambda tensor: np.zeros(tensor.shape).tolist())
    stand_in("numpy", lambda tensor: np.zeros(tensor.shape, np.float32))
    build, kept = run.build_student, []

    def build_there(job):
        with device:
            return build(job)

    def load(*arguments, **options):
        with unset_fake_temporarily():
            batches = list(DataLoader(*arguments, **options))
        return [{name: mode.from_tensor(rows) for name, rows in batch.items()} for batch in batches]

    def faulty(restored, *arguments):
        if fault == "waits":
            restored.mean().item()
        elif fault == "misplaced":
            restored = restored + torch.ones(restored.shape)
        return compute_losses(restored, *arguments)

    class Kept(weights.TrainedWeights):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

        def save(self, path):
            pass

        def whole(self):
            return {}

    run.build_student, run.DataLoader, run.compute_losses, run.TrainedWeights = build_there, load, faulty, Kept
    run.write_student = lambda *_arguments: None
    torch.nn.Module.to = lambda self, *_arguments, **_options: self  # a fake parameter cannot move
    make_data(folder)
    job = setup.open_job(params(folder, max_steps=4, val_every=2, ema_decay=0.9, log_every=1))
    with mode:
        train(job, 0.0)
    [trained] = kept
    tensors = [*trained.network.parameters(), *trained.average._average.values()]
    tensors += [value for state in trained.optimizer.state.values() for value in state.values()]
    return counts | {"places": sorted({str(tensor.device) for tensor in tensors}), "tensors": len(tensors)}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *sys.argv[2:])))
