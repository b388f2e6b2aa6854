"""The OpenAI images API with the official SDK: images.generate, and images.edit where a task has input images.

Any compatible server works through --api_base or OPENAI_BASE_URL. The API takes no seed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dglaunch.backends.api.answers import Answer, RequestError, by_status, decode, flat_numbers
from dglaunch.backends.api.backend import ApiBackend
from dglaunch.backends.api.downloads import download
from dglaunch.backends.api.profile import Api
from dglaunch.backends.api.uploads import Upload
from dglaunch.data.task import Task

FIXED_SIZES = {
    "gpt-image-1": ("1024x1024", "1536x1024", "1024x1536"),
    "chatgpt-image": ("1024x1024", "1536x1024", "1024x1536"),
    "dall-e-2": ("256x256", "512x512", "1024x1024"),
    "dall-e-3": ("1024x1024", "1792x1024", "1024x1792"),
}
"""By the beginning of the model's name, as the SDK documents them (openai 3.54)."""
FREE_SIZES = "gpt-image-2"
"""Models with sizes of one's own: multiples of 16, between 1:3 and 3:1, up to 3840x2160."""
EDITS: dict[str, dict[str, Any]] = {
    "gpt-image": {"max_images": 16, "max_image_bytes": 50_000_000},
    "chatgpt-image": {"max_images": 16, "max_image_bytes": 50_000_000},
    "dall-e-2": {"max_images": 1, "max_image_bytes": 4_000_000, "image_formats": frozenset({"PNG"}), "max_aspect": 1.0},
    "dall-e-3": {"max_images": 0},
}
"""What images.edit takes, by the beginning of the model's name; a compatible server's own model takes what it takes."""
NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
"""Codes of a 429 or 400 that no waiting mends."""


class OpenAIBackend(ApiBackend):
    """See the module's docstring."""

    @staticmethod
    def describe(model: str) -> Api:
        return Api(
            name="the OpenAI images API",
            package="openai",
            keys=("OPENAI_API_KEY",),
            fields=frozenset({"width", "height"}),
            images_per_request=1 if model.startswith("dall-e-3") else 10,
            size=_size_of(model),
            **next((limits for start, limits in EDITS.items() if model.startswith(start)), {}),
        )

    def connect(self, key: str) -> None:
        import openai

        self._sdk = openai
        self._openai = self.client = openai.OpenAI(
            api_key=key, base_url=self.settings.api_base, timeout=self.settings.timeout, max_retries=0,
            http_client=openai.DefaultHttpxClient(event_hooks=self.hooks),
        )  # fmt: skip

    def probe(self) -> None:
        self._openai.models.retrieve(self.model)

    def request(self, tasks: Sequence[Task], images: Sequence[Upload]) -> Answer:
        first = tasks[0]
        arguments: dict[str, Any] = {"model": self.model, "prompt": first.prompt, "n": len(tasks)}
        if first.width is not None and first.height is not None:
            arguments["size"] = self.api.size(first.width, first.height)
        if images:
            files = [(f"{n}.{kind.split('/')[1]}", data, kind) for n, (data, kind) in enumerate(images)]
            return self._answer(self._openai.images.edit(image=files, **arguments))
        return self._answer(self._openai.images.generate(**arguments))

    def _answer(self, answer: Any) -> Answer:
        if not isinstance(answer, self._sdk.types.ImagesResponse):  # the SDK hands out what is no JSON as a text
            raise RequestError("again", f"the answer is no JSON: {str(answer)[:200]!r}")
        to_dict = getattr(answer.usage, "to_dict", dict)  # the SDK hands out any JSON as it came
        images = answer.data if isinstance(answer.data, list) else []
        return Answer([self._part(image) for image in images], flat_numbers(to_dict()))

    def _part(self, image: Any) -> bytes | RequestError:
        encoded, address = getattr(image, "b64_json", None), getattr(image, "url", None)
        try:
            if isinstance(encoded, str) and encoded:
                return decode(encoded)
            if isinstance(address, str) and address:
                return download(address, self.settings.timeout, self.origin)
        except RequestError as damaged:  # the other images of the answer are paid for, and may be whole
            return damaged
        return RequestError("again", "an empty image came")

    def explain(self, error: Exception) -> RequestError:
        if isinstance(error, self._sdk.APITimeoutError):
            return RequestError("again", f"no answer within {self.settings.timeout:g} s")
        if isinstance(error, self._sdk.APIStatusError):
            body = error.body if isinstance(error.body, Mapping) else {}
            reason = str(body.get("message") or error.message)
            if error.code in NO_QUOTA or error.type in NO_QUOTA:
                return RequestError("stop", reason, status=402)
            return by_status(error.status_code, reason, error.response.headers)
        if isinstance(error, self._sdk.APIConnectionError):
            return RequestError("again", f"the connection failed: {error.__cause__ or error}")
        if isinstance(error, ValueError | self._sdk.OpenAIError):
            return RequestError("again", f"the answer cannot be read: {error}")
        return RequestError("refused", f"{type(error).__name__}: {error}")


def _size_of(model: str) -> Callable[[int, int], str]:
    """Width and height to the API's text; an unknown model is a compatible server's, which knows its sizes itself."""
    sizes = next((sizes for start, sizes in FIXED_SIZES.items() if model.startswith(start)), None)

    def size(width: int, height: int) -> str:
        text = f"{width}x{height}"
        if sizes is not None and text not in sizes:
            raise ValueError(f"{model} makes {', '.join(sizes)}.")
        fits = width % 16 == height % 16 == 0 and 1 / 3 <= width / height <= 3 and max(width, height) <= 3840
        if model.startswith(FREE_SIZES) and not (fits and width * height <= 3840 * 2160):
            raise ValueError(
                f"{model} makes multiples of 16 between 1:3 and 3:1 up to 3840x2160, such as 1024x1024, 1536x1024."
            )
        return text

    return size
