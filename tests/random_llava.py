"""LLaVA checkpoints with random weights that are strong enough for captions to differ between images and questions."""

from pathlib import Path

import numpy as np
from PIL import Image

QUESTIONS = {
    "content": "What is it?",
    "brightness": "How bright is this image, and where does the light come from?",
    "viewpoint": "From which side was it taken? Answer in one sentence.",
}
TINY = {"image_size": 32, "vision_width": 64, "vision_layers": 1, "text_width": 64, "text_layers": 2, "heads": 2}


def save_random_llava(directory: Path, gain: float = 4.0, seed: int = 0, **sizes) -> Path:
    """Write a complete random checkpoint of `Shape(**sizes)`; `gain` multiplies its matrices."""
    import torch

    from teacher.mini_training.checkpoint import Shape, build_model, build_processor

    shape = Shape(**(sizes or TINY))
    processor = build_processor(shape, [*QUESTIONS.values(), "A red or a green square, seen from above."])
    model = build_model(shape, processor, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= gain
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def random_pictures(number: int, seed: int = 0) -> list[Image.Image]:
    """Smooth random RGB pictures of different shapes."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(number):
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        pictures.append(small.resize(tuple(int(side) for side in rng.integers(20, 80, 2)), Image.Resampling.BICUBIC))
    return pictures


def separate_call(captioner, image: Image.Image, prompt: str, max_new_tokens: int) -> list[int]:
    """New token ids of one ordinary `generate` call: one image, one question, nothing shared."""
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = captioner.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = captioner.processor(images=image, text=text, return_tensors="pt")
    output = captioner.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    return output[0, inputs["input_ids"].shape[1] :].tolist()
