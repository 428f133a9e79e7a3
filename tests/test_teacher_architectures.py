"""Other vision-language models than LLaVA-1.5: toy checkpoints of four architectures, through the same captioner."""

from pathlib import Path

import pytest
import torch
import transformers
from random_llava import QUESTIONS, random_pictures, separate_call

from teacher.identity import resolve_model
from teacher.llava import static_decode
from teacher.llava.captioner import Captioner
from teacher.llava.separate import SeparateGenerator
from teacher.llava.shared_prefix import SHARED, SharedPrefixGenerator
from teacher.mini_training.checkpoint import CHAT_TEMPLATE, Shape, build_processor

VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 32, "patch_size": 8}
PINPOINTS = [[32, 64], [64, 32], [64, 64]]


def text_of(tokenizer, **more) -> dict:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**ids, **sizes, "num_key_value_heads": 2, "vocab_size": max(len(tokenizer), 576), **more}


def llava_next(tokenizer, image):
    processor = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=PINPOINTS
    )
    strategy = {"vision_feature_select_strategy": "default"}
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=64),
        text_config=transformers.LlamaConfig(**text_of(tokenizer)),
        **{"image_token_id": image, "image_grid_pinpoints": PINPOINTS, "vision_feature_layer": -1, **strategy},
    )
    return transformers.LlavaNextForConditionalGeneration(config), transformers.LlavaNextProcessor(
        processor, tokenizer, patch_size=8, num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE, **strategy
    )


def idefics3(tokenizer, image):
    processor = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    config = transformers.Idefics3Config(
        vision_config=VISION,
        text_config=transformers.LlamaConfig(**text_of(tokenizer)),
        **{"image_token_id": image, "scale_factor": 2, "pad_token_id": tokenizer.pad_token_id},
    )
    return transformers.Idefics3ForConditionalGeneration(config), transformers.Idefics3Processor(
        processor, tokenizer, image_seq_len=4, chat_template=CHAT_TEMPLATE
    )


def paligemma(tokenizer, image):
    processor = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    processor.image_seq_length = 16
    config = transformers.PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION},
        text_config=transformers.GemmaConfig(**text_of(tokenizer, head_dim=32)),
        **{"image_token_id": image, "projection_dim": 64, "hidden_size": 64, "tie_word_embeddings": False},
    )
    return transformers.PaliGemmaForConditionalGeneration(config), transformers.PaliGemmaProcessor(
        processor, tokenizer, chat_template=CHAT_TEMPLATE
    )


def gemma3(tokenizer, image):
    named = {"image_token": "<image>", "boi_token": "<begin>", "eoi_token": "<end>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=named,
    )  # fmt: skip
    begin, end = tokenizer.convert_tokens_to_ids(["<begin>", "<end>"])
    config = transformers.Gemma3Config(
        vision_config=VISION,
        text_config=transformers.Gemma3TextConfig(**text_of(tokenizer, head_dim=32)),
        **{"image_token_id": image, "mm_tokens_per_image": 4, "boi_token_index": begin, "eoi_token_index": end},
    )
    return transformers.Gemma3ForConditionalGeneration(config), transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        tokenizer,
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("<image>\\n", "<begin>"),
    )


ARCHITECTURES = {function.__name__: function for function in (llava_next, idefics3, paligemma, gemma3)}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = build_processor(Shape(image_size=32), [*QUESTIONS.values(), "A red square, seen from above."]).tokenizer
    torch.manual_seed(0)
    model, processor = ARCHITECTURES[request.param](tokenizer, tokenizer.convert_tokens_to_ids("<image>"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 4
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("devices", [set(), {"cpu"}], ids=["as on a CPU", "as on a GPU"])
def test_captions_are_those_of_separate_calls_whichever_way_they_are_made(checkpoint, devices, monkeypatch):
    monkeypatch.setattr(static_decode, "DEVICES", devices)
    captioner = Captioner(
        checkpoint, perspectives=QUESTIONS, quantization="none", dtype="float32", device="cpu", max_new_tokens=8
    )
    shared = captioner.model.config.model_type in SHARED
    assert type(captioner.answer) is (SharedPrefixGenerator if shared else SeparateGenerator)
    assert captioner.answer.static == (devices == {"cpu"} and captioner.model.config.model_type != "gemma3")
    pictures = random_pictures(3)
    said = captioner.caption(pictures)
    for picture, captions in zip(pictures, said, strict=True):
        for name, prompt in QUESTIONS.items():
            tokens = separate_call(captioner, captioner.square(picture), prompt, 8)
            assert captions[name] == captioner.answer._caption(tokens)
    texts = {caption.text for captions in said for caption in captions.values()}
    assert len(texts) >= 3, "else equality would be cheap"


def test_only_the_language_model_is_quantised(checkpoint):
    captioner = Captioner(checkpoint, perspectives=QUESTIONS, quantization="nf4", device="cpu", max_new_tokens=4)
    kinds = {name.split(".")[1]: type(m).__name__ for name, m in captioner.model.named_modules() if "mlp.up" in name}
    assert kinds and set(kinds.values()) == {"Linear4bit"} and kinds.keys() <= {"language_model", "text_model"}
    assert all(isinstance(captions, dict) for captions in captioner.caption(random_pictures(2)))
    assert resolve_model(checkpoint).identity
