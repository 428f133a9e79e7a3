"""Any server that speaks OpenAI's protocol describes images: vLLM, SGLang, Ollama, llama.cpp, `transformers serve`.

Each question about each image is a request of its own, many at once; servers that cache prefixes read an image once.
Optional extra `server`: openai, which repeats requests with growing pauses. A key, where one is needed, is read from
the environment variable OPENAI_API_KEY.
"""

import base64
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

from PIL import Image

from teacher.identity import SERVER_SIDE
from teacher.square import Square
from teacher.teacher import Caption, CaptionFailure, Statistics

REPEATS, SECONDS = 5, 600
"""How often a request is repeated when the server is busy, fails or cannot be reached, and how long each may take."""
OF_THE_IMAGE = (400, 413, 415, 422)
"""HTTP codes that refuse one request's content. All others are the server's own trouble."""


class ServerCaptioner:
    """Asks `perspectives` (name -> prompt) of `model`, as `server` (its URL, as http://127.0.0.1:8000/v1) names it.

    `options` are merged into each request. Raises `ValueError` for a model that is not served, `ConnectionError` when
    requests fail that another image could not do better: no row is written for these.
    """

    def __init__(
        self,
        model: str,
        *,
        perspectives: Mapping[str, str],
        server: str,
        max_new_tokens: int = 64,
        padding: str = "square",
        image_side: int | None = None,
        server_options: Mapping[str, Any] | None = None,
        batch_size: int | str = "auto",
        **_local: object,
    ):
        import openai

        self.model, self.perspectives, self.max_new_tokens = model, dict(perspectives), max_new_tokens
        self.server, self.options = server, dict(server_options or {})
        self.square, self.statistics = Square(image_side or SERVER_SIDE, padding), Statistics()
        self.batch_size = 16 if batch_size == "auto" else int(batch_size)
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self.client = openai.OpenAI(base_url=server, api_key=key, max_retries=REPEATS, timeout=SECONDS)
        self.threads = ThreadPoolExecutor(min(256, self.batch_size * len(self.perspectives)))
        try:
            served = [entry.id for entry in self.client.models.list()]
        except openai.OpenAIError as error:
            raise ConnectionError(f"{server} lists no models: {_reason(error)}") from None
        if model not in served:
            raise ValueError(f"{server} does not serve {model!r} but {', '.join(served) or 'nothing'}")

    def provenance(self) -> dict[str, str]:
        return {"device": "server", "server": self.server}

    def caption(
        self, images: Sequence[Image.Image], perspectives: Sequence[str] | None = None
    ) -> list[dict[str, Caption] | CaptionFailure]:
        """One dictionary (perspective -> `Caption`) or `CaptionFailure` per image, in order."""
        started = perf_counter()
        names = list(self.perspectives if perspectives is None else perspectives)
        asked = []
        for image in images:
            buffer = io.BytesIO()
            self.square(image).save(buffer, "PNG", compress_level=1)
            url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
            asked.append([self.threads.submit(self._ask, url, self.perspectives[name]) for name in names])
        results: list[dict[str, Caption] | CaptionFailure] = []
        for answers in asked:
            said = [answer.result() for answer in answers]
            failed = [answer for answer in said if isinstance(answer, CaptionFailure)]
            results.append(failed[0] if failed else dict(zip(names, said, strict=True)))
        good = [caption for result in results if isinstance(result, dict) for caption in result.values()]
        if images and not good:
            raise ConnectionError(f"{self.server} refuses every image: {results[0].reason}")
        self.statistics.images += len(images)
        self.statistics.captions += len(good)
        self.statistics.tokens += sum(caption.n_tokens for caption in good)
        self.statistics.seconds["generate"] += perf_counter() - started
        return results

    def _ask(self, url: str, prompt: str) -> Caption | CaptionFailure:
        import openai

        content: list[Any] = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
        try:
            answer = self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": content}],
                max_tokens=self.max_new_tokens,
                temperature=0,
                extra_body=self.options,
            )
        except openai.APIStatusError as error:
            if error.status_code in OF_THE_IMAGE:
                return CaptionFailure(_reason(error))
            raise ConnectionError(f"{self.server}: {_reason(error)}") from None
        except openai.OpenAIError as error:
            raise ConnectionError(f"{self.server}: {_reason(error)}") from None
        try:
            choice = answer.choices[0]
        except (AttributeError, IndexError, TypeError):  # a proxy's page, or its error with code 200
            told = " ".join(str(getattr(answer, "error", None) or answer).split())[:300]
            raise ConnectionError(f"{self.server} answers without a choice: {told}") from None
        ended = choice.finish_reason != "length"
        # Servers count the end token; some count nothing.
        tokens = answer.usage.completion_tokens - ended if answer.usage else 0
        return Caption((choice.message.content or "").strip(), max(tokens, 0), "stop" if ended else "length")


def _reason(error: Exception) -> str:
    said = getattr(getattr(error, "response", None), "text", "") or str(error)
    return f"{type(error).__name__}: {' '.join(said.split())[:300]}"
