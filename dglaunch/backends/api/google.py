"""Google's image models with the official SDK: Gemini's native image output (generate_content), and Imagen.

Gemini takes a seed and input images, one image a request. Imagen (a model name that begins with `imagen`) makes up to
four images a request; the SDK offers it on the Gemini Enterprise Agent Platform (Vertex AI) only, with a key of it. It
takes a seed only if its watermark is switched off, which is not ours to do, so none is sent.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from dglaunch.backends.api.answers import Answer, RequestError, amount, by_status, flat_numbers
from dglaunch.backends.api.backend import ApiBackend
from dglaunch.backends.api.profile import Api
from dglaunch.backends.api.uploads import Upload
from dglaunch.data.task import Task

_FLASH_25 = {
    "1:1": "1024x1024", "2:3": "832x1248", "3:2": "1248x832", "3:4": "864x1184", "4:3": "1184x864", "4:5": "896x1152",
    "5:4": "1152x896", "9:16": "768x1344", "16:9": "1344x768", "21:9": "1536x672",
}  # fmt: skip
_GEMINI_3 = {
    "1:1": (1024, 1024), "2:3": (848, 1264), "3:2": (1264, 848), "3:4": (896, 1200), "4:3": (1200, 896),
    "4:5": (928, 1152), "5:4": (1152, 928), "9:16": (768, 1376), "16:9": (1376, 768), "21:9": (1584, 672),
}  # fmt: skip
_IMAGEN = {
    "1:1": (1024, 1024), "3:4": (896, 1280), "4:3": (1280, 896), "9:16": (768, 1408), "16:9": (1408, 768),
}  # fmt: skip


def _scaled(sizes: dict[str, tuple[int, int]], scales: dict[str, int]) -> dict[str, dict[str, str]]:
    """Every size of a family as the settings that ask for it."""
    return {
        f"{width * scale}x{height * scale}": {"aspect_ratio": ratio, "image_size": name}
        for name, scale in scales.items()
        for ratio, (width, height) in sizes.items()
    }


SIZES: dict[str, dict[str, dict[str, str]]] = {
    "gemini-2.5-flash-image": {size: {"aspect_ratio": ratio} for ratio, size in _FLASH_25.items()},
    "gemini-3": _scaled(_GEMINI_3, {"1K": 1, "2K": 2, "4K": 4}),
    "imagen": _scaled(_IMAGEN, {"1K": 1, "2K": 2}),
}
"""By the beginning of the model's name: size -> settings. The models take a ratio and a class, and make these sizes."""
REFUSALS = (
    "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION", "MODEL_ARMOR",
)  # fmt: skip
"""Finish reasons that another try would not change."""
NETWORK = ("TimeoutException", "TransportError", "OSError")
"""Base classes of what httpx, its forks and the operating system raise when a connection fails; the SDK uses whichever
is installed."""


class GoogleBackend(ApiBackend):
    """See the module's docstring."""

    @staticmethod
    def describe(model: str) -> Api:
        imagen = model.startswith("imagen")
        return Api(
            name="the Imagen API" if imagen else "the Gemini API",
            package="google-genai",
            keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
            fields=frozenset(
                {"width", "height", "negative_prompt", "guidance_scale"} if imagen else {"width", "height"}
            ),
            images_per_request=4 if imagen else 1,
            size=_size_of(model),
            max_seed=0 if imagen else 2**31 - 1,
            max_images=0 if imagen else 14 if model.startswith("gemini-3") else None,
        )

    def connect(self, key: str) -> None:
        from google import genai
        from google.genai import errors, types

        self._errors, self._types = errors, types
        self.imagen = self.model.startswith("imagen")
        warnings.filterwarnings(
            "ignore", "The generate_images method is deprecated"
        )  # once a request; Imagen has no other
        options = types.HttpOptions(
            base_url=self.settings.api_base,
            timeout=int(self.settings.timeout * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            client_args={"event_hooks": self.hooks, "limits": _no_limits()},
        )
        self._genai = self.client = genai.Client(api_key=key, vertexai=self.imagen, http_options=options)

    def probe(self) -> None:
        self._genai.models.get(model=self.model)

    def request(self, tasks: Sequence[Task], images: Sequence[Upload]) -> Answer:
        return self._imagen(tasks) if self.imagen else self._gemini(tasks[0], images)

    def _size(self, task: Task) -> dict[str, str]:
        if task.width is None or task.height is None:
            return {}
        size = self.api.size(task.width, task.height)
        assert isinstance(size, dict), "describe() gave the sizes as settings"
        return size

    def _gemini(self, task: Task, images: Sequence[Upload]) -> Answer:
        types = self._types
        size = self._size(task)
        answer = self._genai.models.generate_content(
            model=self.model,
            contents=[
                *(types.Part.from_bytes(data=data, mime_type=kind) for data, kind in images),
                task.prompt,
            ],
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"],
                seed=task.seed,
                image_config=types.ImageConfig(**size) if size else None,
            ),
        )
        usage = answer.usage_metadata
        return Answer(
            [self._part(answer)], flat_numbers(usage.model_dump(exclude_none=True)) if usage is not None else {}
        )

    def _part(self, answer: Any) -> bytes | RequestError:
        """The first image of the answer, or why there is none."""
        feedback = answer.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            return RequestError(
                "refused", f"prompt blocked, {feedback.block_reason.value}: {feedback.block_reason_message or ''}"
            )
        candidate = answer.candidates[0] if answer.candidates else None
        parts = (candidate.content.parts or []) if candidate is not None and candidate.content is not None else []
        for part in parts:
            if part.inline_data is not None and part.inline_data.data:
                return bytes(part.inline_data.data)
        reason, said = "none given", ""
        if candidate is not None:
            reason = candidate.finish_reason.value if candidate.finish_reason is not None else reason
            said = candidate.finish_message or ""
        said = said or " ".join(part.text for part in parts if part.text)
        return RequestError(
            "refused" if reason in REFUSALS else "again", f"no image came, finish reason {reason}: {said[:500]}"
        )

    def _imagen(self, tasks: Sequence[Task]) -> Answer:
        first = tasks[0]
        answer = self._genai.models.generate_images(
            model=self.model,
            prompt=first.prompt,
            config=self._types.GenerateImagesConfig(
                number_of_images=len(tasks),
                negative_prompt=first.negative_prompt,
                guidance_scale=first.guidance_scale,
                include_rai_reason=True,
                **self._size(first),
            ),
        )
        return Answer([_imagen_part(image) for image in answer.generated_images or []])

    def explain(self, error: Exception) -> RequestError:
        if isinstance(error, self._errors.APIError):
            # Gemini calls a wrong key a bad request.
            status = 401 if "API_KEY_INVALID" in str(error.details) else error.code
            headers = getattr(error.response, "headers", None) or {}
            problem = by_status(status, f"{error.status}: {error.message}", headers)
            problem.retry_after = problem.retry_after if problem.retry_after is not None else _retry_info(error.details)
            return problem
        if any(base.__name__ in NETWORK for base in type(error).__mro__):
            return RequestError("again", f"no answer ({type(error).__name__}): {error}")
        if isinstance(error, ValueError):  # pydantic's too: a damaged answer
            return RequestError("again", f"the answer cannot be read: {error}")
        return RequestError("refused", f"{type(error).__name__}: {error}")


def _no_limits() -> object:
    """Of connections: the gate has the limit. (The SDK's HTTP client keeps 20 open and makes 100 at most.)"""
    try:
        import httpx2 as httpx
    except ImportError:  # older versions of the SDK
        import httpx
    return httpx.Limits(max_connections=None, max_keepalive_connections=None)


def _imagen_part(generated: Any) -> bytes | RequestError:
    if generated.image is not None and generated.image.image_bytes:
        return bytes(generated.image.image_bytes)
    return RequestError("refused", f"filtered: {generated.rai_filtered_reason or 'no reason given'}")


def _retry_info(details: object) -> float | None:
    """Google's own way to say Retry-After: a RetryInfo among the details, with a delay such as "32s"."""
    listed = details.get("error", {}).get("details", []) if isinstance(details, dict) else []
    for entry in listed:
        text = str(entry.get("retryDelay", "")) if isinstance(entry, dict) else ""
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?s", text):
            return amount(float(text[:-1]))
    return None


def _size_of(model: str) -> Callable[[int, int], dict[str, str]]:
    sizes = next((sizes for start, sizes in SIZES.items() if model.startswith(start)), None)

    def size(width: int, height: int) -> dict[str, str]:
        if sizes is None:
            raise ValueError(f"dglaunch does not know the sizes of {model}; leave width and height out.")
        if f"{width}x{height}" not in sizes:
            raise ValueError(f"{model} makes {', '.join(sizes)}.")
        return sizes[f"{width}x{height}"]

    return size
