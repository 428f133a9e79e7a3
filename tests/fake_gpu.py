"""A GPU that is not there: `python fake_gpu.py FOLDER` trains, restores and captions on it, and prints what it saw.

Tensors have shapes, types and a device, but no storage (FakeTensorMode). So what mixes devices fails, and so does
whatever needs a value: `.item()`, `float(tensor)`, `if tensor`. The two ways to get values that the code has, `tolist`
and `numpy`, are answered with zeros, and counted; so are copies to the GPU and from it. Each task is done once as it
is, and once for each of FAULTS, to see that found.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import accelerate.accelerator
import numpy as np
import torch
from accelerate import Accelerator
from random_llava import QUESTIONS, TINY, random_pictures
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import backend_registration as registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from toy_student import make_student
from toy_training import make_data, params

from student.network import gpu_blocks
from student.restoration.restorer import Restorer
from student.train import train
from student.training import run, setup, weights
from teacher.llava import static_decode
from teacher.llava.shared_prefix import SharedPrefixGenerator
from teacher.mini_training.checkpoint import Shape, build_model, build_processor
from teacher.square import Square

FAULTS = {
    "waits": lambda tensor: tensor.mean().item(),
    "misplaced": lambda tensor: tensor + torch.ones(tensor.shape, device="cpu"),
    "copies": lambda tensor: tensor.cpu(),
}
LOWERED = ("conv2d", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm")
"""What autocast takes in half precision."""

counts: Counter = Counter()
registration._DummyBackendModule.get_amp_supported_dtype = lambda self: [torch.bfloat16]
registration._setup_privateuseone_for_python_backend("gpu")
device = torch.device("gpu:0")


class Copies(TorchDispatchMode):
    """Counts copies between devices."""

    def __torch_dispatch__(self, kernel, types, args=(), kwargs=None):
        result = kernel(*args, **(kwargs or {}))
        given = [leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        made = [leaf.device for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if given and made and given[-1] != made[0]:
            way = "to the GPU" if made[0] == device else "from the GPU"
            counts[way if (kwargs or {}).get("non_blocking") else f"{way}, waiting"] += 1
        return result


def stand_in(name, answer):
    def method(tensor, *_arguments, **_options):
        counts[name] += 1
        return answer(tensor)

    setattr(FakeTensor, name, method)


def autocasting(library, name):
    """`name` as a device's autocast has it."""
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def lowered(*arguments, **options):
        dtype = torch.get_autocast_dtype("gpu")
        arguments = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments]
        with torch._C._ExcludeDispatchKeyGuard(key):
            return getattr(torch.ops.aten, name)(*arguments, **options)

    library.impl(name, lowered, "AutocastPrivateUse1")


def make_device():
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for name in LOWERED:
        autocasting(aten, name)
    gpu_blocks.DEVICES.add("gpu")
    static_decode.DEVICES.add("gpu")
    Accelerator.device = property(lambda self: device)
    accelerate.accelerator.get_mixed_precision_context_manager = lambda *_: torch.autocast("gpu", torch.bfloat16)
    stand_in("tolist", lambda tensor: np.zeros(tensor.shape, np.int64).tolist())
    stand_in("numpy", lambda tensor: np.zeros(tensor.shape, np.float32))
    stand_in("pin_memory", lambda tensor: tensor)
    torch._check_tensor_all_with = lambda *_arguments: counts.update(["check"])  # LLaVA's, of its inputs
    torch.nn.Module.to = lambda self, *_arguments, **_options: self  # a fake parameter cannot move
    return everything, aten


def do_training(folder, fault, mode):
    """Four steps of one micro-batch and two validations of three images, each with two pools."""
    kept, build, losses = [], setup.build_student, run.compute_losses

    def build_there(job):
        with device:
            return build(job)

    def load(*arguments, **options):
        with unset_fake_temporarily():
            batches = list(DataLoader(*arguments, **options))
        return [{name: mode.from_tensor(rows) for name, rows in batch.items()} for batch in batches]

    def faulty(restored, *arguments):
        fault(restored)
        return losses(restored, *arguments)

    class Kept(weights.TrainedWeights):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            kept.append(self)

        def save(self, path):
            pass

        def whole(self):
            return {}

    with unset_fake_temporarily():
        folder.mkdir()
        make_data(folder)
        job = setup.open_job(params(folder, max_steps=4, val_every=2, ema_decay=0.9, mixed_precision="bf16"))
    run.build_student, run.DataLoader, run.compute_losses, run.TrainedWeights = build_there, load, faulty, Kept
    run.write_student = lambda *_arguments: None
    try:
        train(job, 0.0)
    finally:
        run.compute_losses = losses
    [trained] = kept
    assert type(trained.network.backbone) is gpu_blocks.GpuRestormer
    tensors = [*trained.network.parameters(), *trained.average._average.values()]
    tensors += [value for state in trained.optimizer.state.values() for value in state.values()]
    assert len(tensors) > 500
    return {"places": sorted({str(tensor.device) for tensor in tensors})}


def do_restoring(_folder, fault, _mode):
    """One image whole, and in tiles with one look over all of them before."""
    with device:
        student = make_student()
    faulty, lq = student.backbone.decode, np.zeros((3, 160, 96), np.float32)

    def decode(x, *arguments):
        fault(x)
        return faulty(x, *arguments)

    student.backbone.decode = decode
    tiles = [Restorer(student, device, tile=tile)(lq).tiles for tile in ("off", 64)]
    return {"tiles": tiles}


def do_captioning(_folder, fault, mode):
    """Two images, three questions, eighteen new tokens, once more: prefill, and the decoding loop."""
    shape = Shape(**TINY)
    with unset_fake_temporarily():
        processor = build_processor(shape, list(QUESTIONS.values()))
        squares = [Square(TINY["image_size"])(picture) for picture in random_pictures(2)]
    with device:
        model = build_model(shape, processor, 0)
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: [fault(output)] and None)
    generator = SharedPrefixGenerator(model, processor, QUESTIONS, 18)
    assert generator.static
    generator(squares)
    counts.clear()  # of building model and decoder
    return {"captions": sum(map(len, generator(squares)))}


TASKS = {"training": do_training, "restoring": do_restoring, "captioning": do_captioning}


def main(folder: Path) -> dict:
    _libraries, facts = make_device(), {}
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor` makes no real tensor on the GPU,
    FakeTensorMode.may_turn_const = lambda self, tensor: False  # and keeps no value
    for task, do in TASKS.items():
        for name, fault in {"": lambda tensor: None, **FAULTS}.items():
            counts.clear()
            with FakeTensorMode(allow_non_fake_inputs=True) as mode, Copies():
                try:
                    facts[f"{task} {name}".strip()] = do(folder / f"{task}{name}", fault, mode) | counts
                except Exception as error:
                    facts[f"{task} {name}".strip()] = f"{type(error).__name__}: {error}"
                    if not name:
                        raise
    return facts


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
