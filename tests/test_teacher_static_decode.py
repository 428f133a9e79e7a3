"""Decoding for GPUs, here on a CPU: the tokens of separate calls, whoever ends when, recorded or not."""

from contextlib import nullcontext

import pytest
import torch
from random_llava import QUESTIONS, random_pictures, separate_call
from tape import Tape

from teacher.llava import static_decode
from teacher.llava.captioner import Captioner

LONG = 28


@pytest.fixture(params=["ordinary steps", "recorded steps"])
def cpu_as_a_gpu(request, monkeypatch):
    """Returns the tapes that are recorded."""
    tapes = []

    def record(tape, **_options):
        tapes.append(tape)
        return tape

    monkeypatch.setattr(static_decode, "DEVICES", {"cpu"})
    monkeypatch.setattr(static_decode, "records", lambda model: request.param == "recorded steps")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    return tapes


def captioner_of(checkpoint, questions=3, quantization="none", **options) -> Captioner:
    options = {"dtype": "float32", "device": "cpu", "batch_size": 4, "max_new_tokens": LONG, **options}
    perspectives = dict(list(QUESTIONS.items())[:questions])
    return Captioner(checkpoint, perspectives=perspectives, quantization=quantization, **options)


def separate(captioner, pictures, length=LONG) -> list[list[list[int]]]:
    prompts = [QUESTIONS[name] for name in captioner.answer.ids]
    return [[separate_call(captioner, picture, prompt, length) for prompt in prompts] for picture in pictures]


def assert_said(captioner, pictures, rows):
    said = [list(captions.values()) for captions in captioner.caption(pictures)]
    assert said == [[captioner.answer._caption(tokens) for tokens in row] for row in rows]


@pytest.mark.parametrize("questions", [1, 3])
def test_equal_tokens_for_any_number_of_questions_and_batches_of_any_size(checkpoint, questions, cpu_as_a_gpu):
    captioner, pictures = captioner_of(checkpoint, questions), random_pictures(7)
    rows = separate(captioner, pictures)
    assert len({tuple(tokens) for row in rows for tokens in row}) >= len(pictures), "else equality would be cheap"
    assert captioner.answer.static
    assert_said(captioner, pictures, rows)  # four images, then three
    assert_said(captioner, pictures[:1], rows[:1])
    assert captioner.statistics.wasted_prompt_tokens == 0


def test_equal_tokens_in_nf4(checkpoint, cpu_as_a_gpu):
    captioner, pictures = captioner_of(checkpoint, quantization="nf4", max_new_tokens=10), random_pictures(2)
    assert_said(captioner, pictures, separate(captioner, pictures, 10))


def test_images_that_have_ended_leave_and_disturb_no_other(checkpoint, cpu_as_a_gpu, monkeypatch):
    captioner, pictures = captioner_of(checkpoint, batch_size=8), random_pictures(8)
    rows = separate(captioner, pictures)
    early = {tokens[3] for row in rows[:6] for tokens in row} | {tokens[12] for tokens in rows[6]}
    captioner.answer.end_ids, sizes = early, []
    replay = static_decode.StaticDecoder._replay
    monkeypatch.setattr(
        static_decode.StaticDecoder, "_replay", lambda self, rows: [sizes.append(rows), replay(self, rows)]
    )
    for _ in range(2):  # the graphs of the first time serve the second
        assert_said(captioner, pictures, rows)
    assert sizes[0] == 8 and len(set(sizes)) > 1 and sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]
    counts = captioner.statistics
    assert counts.tokens + counts.wasted_tokens == len(QUESTIONS) * (2 * 8 + sum(sizes))
    lengths = {caption.n_tokens for captions in captioner.caption(pictures) for caption in captions.values()}
    assert len(lengths) > 3
    if cpu_as_a_gpu:
        assert len(cpu_as_a_gpu) == len(set(sizes)) and all(tape.replays > 1 for tape in cpu_as_a_gpu)


def test_other_questions_or_more_images_are_not_answered_from_memory(checkpoint, cpu_as_a_gpu):
    captioner, pictures = captioner_of(checkpoint, batch_size=2), random_pictures(3)
    rows = separate(captioner, pictures)
    everything = captioner.caption(pictures)
    for names in (["viewpoint"], ["content", "viewpoint"], list(QUESTIONS)):
        for caption, whole in zip(captioner.caption(pictures, names), everything, strict=True):
            assert caption == {name: whole[name] for name in names}
    captioner.batch_size = 3
    assert_said(captioner, pictures, rows)


def test_an_image_that_gives_nan_spoils_no_later_one(checkpoint, cpu_as_a_gpu):
    captioner, pictures = captioner_of(checkpoint), random_pictures(4)
    expected = captioner.caption(pictures)
    pixels = captioner.answer.image_inputs([captioner.square(picture) for picture in pictures], "content")
    broken = {"pixel_values": pixels["pixel_values"].clone()}
    broken["pixel_values"][1] = torch.nan
    names = list(QUESTIONS)
    said = captioner.answer.answer_inputs(broken, 4, names)
    assert [said[i] for i in (0, 2, 3)] == [expected[i] for i in (0, 2, 3)]
    assert any(layer.keys.isnan().any() for layer in captioner.answer._decoder[1].cache.layers)
    assert captioner.answer.answer_inputs(pixels, 4, names) == expected


def test_answers_can_be_made_to_go_on(checkpoint, cpu_as_a_gpu):
    captioner, pictures = captioner_of(checkpoint, max_new_tokens=10), random_pictures(2)
    captioner.answer.end_ids = {tokens[1] for row in separate(captioner, pictures, 10) for tokens in row}
    captioner.answer.min_new_tokens = 6
    said = captioner.caption(pictures)
    captioner.answer.static = False
    assert captioner.caption(pictures) == said
    lengths = {caption.n_tokens for row in said for caption in row.values()}
    assert min(lengths) >= 6 and len(lengths) > 1


def test_the_prefix_is_kept_once_an_image_and_nothing_after_a_failure(checkpoint, cpu_as_a_gpu, monkeypatch):
    captioner = captioner_of(checkpoint)
    captioner.caption(random_pictures(4))
    decoder, sequences = captioner.answer._decoder[1], list(captioner.answer.ids.values())
    slots = decoder.prefix + sum(len(ids) - decoder.prefix for ids in sequences) + len(sequences) * LONG
    assert decoder.cache.layers[0].keys.shape[::2] == (4, slots + -slots % static_decode.ALIGNED)

    def fails(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(static_decode.StaticDecoder, "_replay", fails)
    with pytest.raises(MemoryError, match="one image at a time"):
        captioner.caption(random_pictures(4))
    assert captioner.answer._decoder is None and captioner.batch_size == 1
