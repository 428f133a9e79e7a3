"""Sharing the prefix changes nothing but the time; a failure costs only the image that caused it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from random_llava import QUESTIONS, random_pictures, save_random_llava, separate_call

from teacher.llava.captioner import Captioner, measured_batch
from teacher.llava.shared_prefix import shared_prefix
from teacher.teacher import CaptionFailure

MID_SIZE = {"vision_width": 128, "vision_layers": 2, "text_width": 256, "text_layers": 4, "text_mlp": 512, "heads": 8}


def captioner_of(checkpoint, perspectives=QUESTIONS, quantization="none", max_new_tokens=10, **options):
    options = {"dtype": "float32", "device": "cpu", "batch_size": 3, **options}
    return Captioner(
        checkpoint,
        perspectives=perspectives,
        quantization=quantization,
        max_new_tokens=max_new_tokens,
        **options,
    )


def assert_equal_to_separate_calls(captioner, images, max_new_tokens=10):
    prompts = {name: QUESTIONS[name] for name in captioner.answer.ids}
    results = captioner.caption(images)
    seen = set()
    for image, result in zip(images, results, strict=True):
        assert list(result) == list(prompts)
        for name, prompt in prompts.items():
            tokens = separate_call(captioner, image, prompt, max_new_tokens)
            assert result[name] == captioner.answer._caption(tokens)
            seen.add(tuple(tokens))
    assert len(seen) >= len(images)  # else equality would be cheap


@pytest.mark.parametrize("number", [1, 2, 3])
def test_equal_tokens_for_any_number_of_questions_and_a_last_partial_batch(checkpoint, number):
    captioner = captioner_of(checkpoint, dict(list(QUESTIONS.items())[:number]))
    assert_equal_to_separate_calls(captioner, random_pictures(4))


def test_equal_tokens_in_nf4(checkpoint):
    assert_equal_to_separate_calls(captioner_of(checkpoint, quantization="nf4"), random_pictures(3))


def test_equal_tokens_on_a_mid_size_model(tmp_path):
    directory = save_random_llava(tmp_path, gain=3.0, **MID_SIZE)
    assert_equal_to_separate_calls(captioner_of(directory, max_new_tokens=8), random_pictures(2), max_new_tokens=8)


def test_a_batch_of_one_equals_a_batch_of_many(checkpoint):
    images = random_pictures(5)
    assert captioner_of(checkpoint, batch_size=1).caption(images) == captioner_of(checkpoint, batch_size=5).caption(
        images
    )


def test_some_perspectives_alone_equal_all_of_them(checkpoint):
    captioner, images = captioner_of(checkpoint), random_pictures(2)
    everything = captioner.caption(images)
    for result, whole in zip(captioner.caption(images, ["viewpoint", "content"]), everything, strict=True):
        assert result == {name: whole[name] for name in ("viewpoint", "content")}


def test_finish_reason_tells_a_cut_caption_from_an_ended_one(checkpoint):
    captioner = captioner_of(checkpoint)
    full = captioner.caption(random_pictures(1))[0]["content"]
    assert (full.n_tokens, full.finish_reason) == (10, "length")
    tokens = separate_call(captioner, random_pictures(1)[0], QUESTIONS["content"], 10)
    captioner.answer.end_ids = {tokens[4]}
    ended = captioner.answer._caption(tokens)
    assert (ended.n_tokens, ended.finish_reason) == (tokens.index(tokens[4]), "stop")
    assert (
        ended.text == captioner.processor.tokenizer.decode(tokens[: ended.n_tokens], skip_special_tokens=True).strip()
    )


def test_the_end_token_is_taken_from_the_tokenizer_too(checkpoint, tmp_path):
    """Fine-tuned models often name it in one place only; each caption would be cut, and nothing said."""
    model = shutil.copytree(checkpoint, tmp_path / "model")
    generation = json.loads((model / "generation_config.json").read_text())
    end = generation.pop("eos_token_id")
    (model / "generation_config.json").write_text(json.dumps(generation))
    assert captioner_of(model).answer.end_ids == {end}
    (model / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [end + 5]}))
    assert captioner_of(model).answer.end_ids == {end, end + 5}


def test_rows_that_end_leave_the_batch_and_disturb_no_other(checkpoint):
    captioner, images = captioner_of(checkpoint, batch_size=4), random_pictures(4)
    separate = [[separate_call(captioner, image, prompt, 10) for prompt in QUESTIONS.values()] for image in images]
    rows = [tokens for row in separate for tokens in row]
    captioner.answer.end_ids = {rows[0][1], rows[4][3], rows[7][6]}
    captions = [list(result.values()) for result in captioner.caption(images)]
    assert captions == [[captioner.answer._caption(tokens) for tokens in row] for row in separate]
    lengths = {caption.n_tokens for row in captions for caption in row}
    assert len(lengths) > 2
    slots = captioner.statistics.tokens + captioner.statistics.wasted_tokens
    assert slots < len(rows) * (max(lengths) + 1)


class Fragile:
    """The real generator, except that it runs out of memory above `limit` images and fails on one picture."""

    def __init__(self, answer, limit=99, poison=None, message="bad kernel"):
        self.answer, self.limit, self.poison, self.message, self.sizes = answer, limit, poison, message, []
        self.statistics = answer.statistics

    def __call__(self, squares, names=None):
        self.sizes.append(len(squares))
        if len(squares) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.poison is not None and self.poison in squares:
            raise RuntimeError(self.message)
        return self.answer(squares, names)


def test_out_of_memory_halves_the_batch_and_remembers(checkpoint):
    captioner, images = captioner_of(checkpoint, batch_size=8), random_pictures(7)
    expected = captioner.caption(images)
    captioner.answer = Fragile(captioner.answer, limit=2)
    assert captioner.caption(images) == expected
    assert captioner.answer.sizes == [7, 4, 2, 2, 2, 1]
    assert captioner.batch_size == 2


def test_one_image_too_large_for_the_memory_says_what_to_do(checkpoint):
    captioner = captioner_of(checkpoint)
    captioner.answer = Fragile(captioner.answer, limit=0)
    with pytest.raises(MemoryError, match="one image at a time.*quantization"):
        captioner.caption(random_pictures(2))


@pytest.mark.parametrize("room, images", [(10_000, 44), (2_000, 8), (1_000, 2), (500, 1), (10**9, 256)])
def test_a_batch_is_as_large_as_measured_memory_allows(checkpoint, room, images, monkeypatch):
    """On a device where the weights take 200 bytes and an image 200 more."""
    captioner, sizes = captioner_of(checkpoint, max_new_tokens=9), []
    answer = captioner.answer
    short = answer([captioner.square(picture) for picture in random_pictures(1)])

    class Device(Fragile):
        side, min_new_tokens, max_new_tokens, forgotten = answer.side, 0, 9, 0
        model = SimpleNamespace(device=torch.device("cuda"))

        def __call__(self, squares, names=None):
            assert self.min_new_tokens == 9, "answers as long as they may become"
            sizes.append(len(squares))
            return super().__call__(squares, names)

        def forget(self):
            self.forgotten += 1

    device = Device(answer, limit=(room - 200) // 200)
    for name, function in {
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_allocated": lambda device: 200 + 200 * sizes[-1],
        "memory_allocated": lambda device: 200,
        "mem_get_info": lambda device: (room - 200, room),
        "empty_cache": lambda: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert measured_batch(device) == images
    assert device.forgotten and device.min_new_tokens == 0 and device.statistics.images == 0
    assert answer([captioner.square(picture) for picture in random_pictures(1)]) == short


def test_one_bad_image_costs_only_itself(checkpoint):
    captioner, images = captioner_of(checkpoint), random_pictures(3)
    expected = captioner.caption(images)
    captioner.answer = Fragile(captioner.answer, poison=captioner.square(images[1]))
    results = captioner.caption(images)
    assert results[1] == CaptionFailure("RuntimeError: bad kernel")
    assert [results[0], results[2]] == [expected[0], expected[2]]


def test_a_model_that_fails_on_every_image_raises_instead_of_writing_failures(checkpoint):
    captioner = captioner_of(checkpoint)
    captioner.answer = Fragile(captioner.answer, poison=captioner.square(random_pictures(1)[0]))
    with pytest.raises(RuntimeError, match="bad kernel"):
        captioner.caption(random_pictures(1) * 3)


def test_a_strip_is_shrunk_before_it_is_padded_to_a_square(checkpoint):
    strip = random_pictures(1)[0].resize((60_000, 2))
    assert captioner_of(checkpoint).square(strip).size == (32, 32)


def test_padding_shows_what_a_crop_cuts_off(checkpoint):
    wide = random_pictures(1)[0].resize((96, 32))
    changed = wide.copy()
    changed.paste((255, 0, 0), (0, 0, 16, 32))  # outside the central square
    square, crop = (captioner_of(checkpoint, padding=padding).square for padding in ("square", "crop"))
    assert square(wide) != square(changed)
    assert crop(wide) == crop(changed)


@pytest.mark.parametrize("padding", ["square", "crop"])
def test_squares_give_the_pixels_of_the_image_processor_to_the_bit(checkpoint, padding):
    captioner, rng = captioner_of(checkpoint, padding=padding), np.random.default_rng(0)
    for width, height in [(1, 1), (32, 32), (1, 90), (300, 7), *rng.integers(2, 200, (40, 2)).tolist()]:
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        wanted = captioner.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
        square = captioner.square(picture)
        assert torch.equal(captioner.answer.image_inputs([square], "content")["pixel_values"], wanted), (width, height)
        assert captioner.square(square) is square


def test_statistics_count_tokens_and_waste(checkpoint):
    captioner = captioner_of(checkpoint, batch_size=2)
    captions = [caption for result in captioner.caption(random_pictures(3)) for caption in result.values()]
    counts = captioner.statistics
    assert (counts.images, counts.captions) == (3, 9)
    assert counts.tokens == sum(caption.n_tokens + (caption.finish_reason == "stop") for caption in captions)
    lengths = [len(ids) for ids in captioner.answer.ids.values()]
    assert counts.wasted_prompt_tokens == 3 * sum(max(lengths) - length for length in lengths)
    prefix = shared_prefix(list(captioner.answer.ids.values()))
    assert counts.prompt_tokens == 3 * (prefix + sum(length - prefix for length in lengths))
    assert all(seconds > 0 for seconds in counts.seconds.values())


@pytest.mark.parametrize("sequences, length", [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1), ([[5, 6]], 1)])
def test_the_shared_prefix_leaves_every_question_a_token(sequences, length):
    assert shared_prefix(sequences) == length
