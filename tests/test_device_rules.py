"""What a GPU asks of the code, on one that is not there (fake_gpu.py): no mixed devices, no idle wait or copy."""

import json

import pytest
from processes import ROOT, printed

SENT, SENT_WAITING, FETCHED = "to the GPU", "to the GPU, waiting", "from the GPU, waiting"
EXPECTED = {
    # A `tolist` a step, and a copy of each of the batch's seven tensors, for which nobody waits; of each of 2 x 3
    # validation images one copy to the GPU and one back, and a `tolist` for each of its two pools. Everything lies on
    # the GPU afterwards.
    "training": {
        "places": ["gpu:0"], "tolist": 4 + 2 * 3 * 2, SENT: 4 * 7, SENT_WAITING: 2 * 3, FETCHED: 2 * 3, "numpy": 2 * 3,
    },
    # The whole image; two samples, eight tiles that are looked over, eight that are restored: those come back.
    "restoring": {"tiles": [1, 8], SENT_WAITING: 1 + 2 + 8 + 8, FETCHED: 1 + 8, "numpy": 1 + 8},
    # The pixels, pinned, and LLaVA's own check of its inputs. The loop asks who has ended at steps 8 and 16, and at its
    # end for all tokens, and for nothing else.
    "captioning": {"captions": 2 * 3, "pin_memory": 1, SENT: 1, "check": 1, "tolist": 3},
}  # fmt: skip
FAULTS = {"waits": "_local_scalar_dense", "misplaced": "two devices, gpu:0 and cpu"}


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    said = printed(ROOT, "tests/fake_gpu.py", str(tmp_path_factory.mktemp("gpu")))
    return json.loads(said.splitlines()[-1])


@pytest.mark.parametrize("task", EXPECTED)
def test_nothing_mixes_devices_waits_or_copies_unasked(facts, task):
    assert facts[task] == EXPECTED[task]


@pytest.mark.parametrize("task", EXPECTED)
def test_the_fake_gpu_finds_faults(facts, task):
    for fault, error in FAULTS.items():
        assert error in facts[f"{task} {fault}"]
    assert facts[f"{task} copies"][FETCHED] >= 4 + EXPECTED[task].get(FETCHED, 0)
