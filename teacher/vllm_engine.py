"""vLLM in this process describes images: many questions at once, each image's prefix read once. Package `vllm`.

Token ids are those of our own processor (vLLM's chat path forgets LLaVA's begin token), and pictures are our squares,
so that its image processor has nothing to crop. `quantization`: `none`, `fp8`, or `nf4`, which it calls bitsandbytes.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from time import perf_counter
from typing import Any

from PIL import Image

from teacher.identity import library_versions, resolve_model
from teacher.square import Square
from teacher.teacher import Caption, CaptionFailure, Statistics

QUANTIZATIONS = {"none": None, "fp8": "fp8", "nf4": "bitsandbytes"}


class VllmCaptioner:
    """Asks `perspectives` (name -> prompt) of the checkpoint `model`, a hub id or a folder.

    Raises `ValueError` for what vLLM cannot run, and `OSError` when its engine fails: no row is written then.
    """

    def __init__(
        self,
        model: str,
        *,
        perspectives: Mapping[str, str],
        quantization: str = "none",
        dtype: str = "auto",
        max_new_tokens: int = 64,
        padding: str = "square",
        image_side: int | None = None,
        revision: str | None = None,
        batch_size: int | str = "auto",
        **_other: object,
    ):
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # its end is ours, and ours is its end
        try:
            import vllm
        except ModuleNotFoundError:
            raise ValueError(
                "caption.teacher: vllm needs vLLM; in an environment of its own: pip install vllm"
            ) from None
        from transformers import AutoConfig
        from vllm.platforms import current_platform

        from teacher.llava.loading import load_processor
        from teacher.llava.shared_prefix import SIDE, question_ids

        if quantization not in QUANTIZATIONS:
            raise ValueError(f"vLLM has no {quantization!r}: caption.quantization is one of {', '.join(QUANTIZATIONS)}")
        source = resolve_model(model, revision)
        config = AutoConfig.from_pretrained(source.path, revision=source.revision, trust_remote_code=False)
        processor = load_processor(source, padding)
        self.tokenizer = processor.tokenizer
        seen = image_side or getattr(config.vision_config, "image_size", None) or SIDE
        self.square = Square(seen, padding, tuple(int(x * 255) for x in processor.image_processor.image_mean))
        whole = question_ids(processor, perspectives, seen)
        self.ids = {name: _folded(ids, config.image_token_id) for name, ids in whole.items()}
        on_cpu = current_platform.is_cpu()
        self.dtype = ("float32" if on_cpu else "bfloat16") if dtype == "auto" else dtype
        self.version, self.statistics = vllm.__version__, Statistics()
        self.batch_size = 32 if batch_size == "auto" else int(batch_size)
        self.sampling = vllm.SamplingParams(
            # Decoded here: vLLM drops the half character at which an answer was cut, so its texts would differ.
            temperature=0,
            max_tokens=max_new_tokens,
            stop_token_ids=[self.tokenizer.eos_token_id],
            detokenize=False,
        )
        self.engine = vllm.LLM(
            model=source.path,
            revision=source.revision,
            tokenizer_revision=source.revision,
            dtype=self.dtype,
            quantization=QUANTIZATIONS[quantization],
            max_model_len=max(map(len, whole.values())) + max_new_tokens + 1,
            max_num_seqs=min(1024, self.batch_size * len(self.ids)),
            limit_mm_per_prompt={"image": 1},
            enable_prefix_caching=True,
            trust_remote_code=False,
            seed=0,
            **({"block_size": 32, "enforce_eager": True, "distributed_executor_backend": "uni"} if on_cpu else {}),
        )
        self.device = "cpu" if on_cpu else current_platform.get_device_name()

    def provenance(self) -> dict[str, str]:
        versions = library_versions("torch", "transformers")
        return {"device": self.device, "dtype": self.dtype, "vllm": self.version, **versions}

    def caption(
        self, images: Sequence[Image.Image], perspectives: Sequence[str] | None = None
    ) -> list[dict[str, Caption] | CaptionFailure]:
        """One dictionary (perspective -> `Caption`) an image, in order."""
        started, names = perf_counter(), list(self.ids if perspectives is None else perspectives)
        asked: list[Any] = []
        for image in images:
            picture = {"image": self.square(image)}
            asked += [{"prompt_token_ids": self.ids[name], "multi_modal_data": picture} for name in names]
        try:
            answers = [answer.outputs[0] for answer in self.engine.generate(asked, self.sampling, use_tqdm=False)]
        except Exception as error:  # its engine has errors of its own, none of which another image would mend
            raise OSError(f"vLLM: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
        said = []
        for answer in answers:
            if answer.finish_reason not in ("stop", "length"):
                raise OSError(f"vLLM gave up on an image: finish_reason {answer.finish_reason!r}")
            ids = list(answer.token_ids)[: len(answer.token_ids) - (answer.finish_reason == "stop")]  # no end token
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            said.append(Caption(text, len(ids), answer.finish_reason))
        self.statistics.images += len(images)
        self.statistics.captions += len(said)
        self.statistics.tokens += sum(len(answer.token_ids) for answer in answers)
        self.statistics.seconds["generate"] += perf_counter() - started
        return [dict(zip(names, said[i : i + len(names)], strict=True)) for i in range(0, len(said), len(names))]


def _folded(ids: Sequence[int], image_token: int) -> list[int]:
    """Every run of image tokens as one: vLLM expands it by itself."""
    return [token for token, run in groupby(ids) for _ in ([0] if token == image_token else run)]
