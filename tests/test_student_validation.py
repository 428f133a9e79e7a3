"""Validation inside training: an output that is no picture ends the run in a line that says where it goes on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from student.training.stopping import TrainingStopped
from student.training.validation import validate


def test_pixels_that_are_not_finite_end_the_run_by_name():
    image = np.full((3, 16, 16), 0.5, np.float32)
    pairs = SimpleNamespace(dataset=["d"], gt_path=["photos/a.png"], by_dataset={"d": [0]})
    data = SimpleNamespace(pairs=pairs, whole_image=lambda row: (image, image))
    here = SimpleNamespace(num_processes=1, process_index=0, device="cpu")

    def overflowed(lq, return_prompts):
        return torch.full_like(lq, float("nan")), SimpleNamespace(task=None, domain=None)

    with pytest.raises(TrainingStopped, match="photos/a.png.*not finite.*mixed_precision") as error:
        validate(overflowed, data, [0], 16, here)
    assert "\n" not in str(error.value)
