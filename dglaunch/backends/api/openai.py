"""The OpenAI images API with the official SDK: images.generate, and images.edit where a task has input images.

A server of one's own that speaks it (vLLM-Omni, SGLang, LocalAI) works through --api_base or OPENAI_BASE_URL. It gets more than
OpenAI's models take: a seed for each image, steps, guidance, a negative prompt, any size; as `extra_body`, which is JSON
keys of a generation and form fields of an edit.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

from dglaunch.backends.api.answers import (
    Answer,
    Part,
    RequestError,
    by_status,
    decode,
    flat_numbers,
    rewritten,
    too_late,
    unexplained,
)
from dglaunch.backends.api.backend import ApiBackend
from dglaunch.backends.api.batch_api import BatchApi
from dglaunch.backends.api.checks import extra_fields
from dglaunch.backends.api.description import Api
from dglaunch.backends.api.downloads import download
from dglaunch.backends.api.models import model_of, unknown_model
from dglaunch.backends.api.openai_batches import OpenAIBatches
from dglaunch.backends.api.sizes import size_of
from dglaunch.backends.api.uploads import Upload
from dglaunch.config import MAX_SEED
from dglaunch.data.task import SAMPLING, Task

NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
"""Codes of a 429 or 400 that no waiting mends."""
MOST_IMAGES = 10
"""Of a request, where the table does not know the model."""
PARAMETERS = ("quality", "background", "output_compression", "moderation", "input_fidelity")
"""Flags that are parameters of the API."""
FORMATS = {"png": "png", "jpg": "jpeg", "webp": "webp"}
"""The API's names of --output_format."""
SET_HERE = frozenset(
    {"model", "prompt", "n", "size", "image", "image[]", "mask", "response_format", "output_format", "stream", "seed"}
    | {"width", "height", "negative_prompt", "num_inference_steps", "guidance_scale", *PARAMETERS}
)
"""What --api_extra must not set."""
DATA_URL = "data:"
CONNECT_S = 20.0
"""A machine that is off answers nothing at all: that is known long before an image would come."""
NO_CONNECTION = "ConnectTimeout"
"""httpx's word for it."""
UNSENT = ("ConnectTimeout", "ConnectError")
"""Its words for what fails before a request goes out."""
TRUE_CFG = "qwen"
"""In the names of models whose guidance scale is `true_cfg_scale`."""


class OpenAIBackend(ApiBackend):
    """See the module's docstring."""

    base_variable = "OPENAI_BASE_URL"

    @staticmethod
    def describe(model: str, servers: tuple[str, ...] = ()) -> Api:
        row = model_of("openai", model)
        own = bool(servers) and row is None
        return Api(
            name="the OpenAI images API",
            package="openai",
            keys=("OPENAI_API_KEY",),
            fields=frozenset(SAMPLING if own else {"width", "height"}),
            size=size_of(model, row),
            max_seed=MAX_SEED if own else 0,
            refused_extra=SET_HERE,
            servers=servers,
            model=row or unknown_model(1 if own else MOST_IMAGES, PARAMETERS),
            is_known=row is not None,
            most_per_request=MOST_IMAGES if own else None,
        )

    def connect(self, key: str) -> None:
        import openai

        self._sdk = openai
        self.extra = extra_fields(self.settings.api_extra)
        self._openai = self.client = openai.OpenAI(
            api_key=key or "none", base_url=self.first_base, max_retries=0,
            timeout=openai.Timeout(self.settings.timeout, connect=min(self.settings.timeout, CONNECT_S)),
            http_client=openai.DefaultHttpxClient(event_hooks=self.hooks),
        )  # fmt: skip

    def probe(self) -> None:
        self._openai.models.retrieve(self.model)

    def models(self) -> list[str]:
        return [model.id for model in self._openai.models.list().data]

    def request(self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None) -> Answer:
        arguments = self._arguments(tasks)
        if not images:
            return self._answer(self._openai.images.generate(**arguments), tasks[0])
        arguments["image"] = [(f"{n}.{kind.split('/')[1]}", data, kind) for n, (data, kind) in enumerate(images)]
        if mask is not None:
            arguments["mask"] = ("mask.png", *mask)
        return self._answer(self._openai.images.edit(**arguments), tasks[0])

    def batches(self) -> BatchApi:
        return OpenAIBatches(self._openai, self.context.config.edits, self._arguments, self._read_json, _problem_of)

    def _read_json(self, body: Mapping[str, object], task: Task) -> Answer:
        """An answer that came in a file."""
        return self._answer(self._sdk.types.ImagesResponse.construct(**body), task)

    def _arguments(self, tasks: Sequence[Task]) -> dict[str, Any]:
        """What the SDK's methods are called with, but for images."""
        first = tasks[0]
        arguments: dict[str, Any] = {"model": self.model, "prompt": first.text, "n": len(tasks)}
        if first.width is not None and first.height is not None:
            arguments["size"] = self.api.size(first.width, first.height)
        arguments |= {name: value for name in PARAMETERS if (value := getattr(self.settings, name)) is not None}
        if self.settings.output_compression is not None or self.settings.background == "transparent":
            arguments["output_format"] = FORMATS[self.output_format]
        extra = dict(self.extra)
        if self.api.is_own_model:
            arguments["response_format"] = "b64_json"
            extra = _of_own_model(self.model, tasks) | extra
        return arguments | ({"extra_body": extra} if extra else {})

    def _answer(self, answer: Any, task: Task) -> Answer:
        if not isinstance(answer, self._sdk.types.ImagesResponse):  # the SDK hands out what is no JSON as a text
            raise RequestError("again", f"the answer is no JSON: {str(answer)[:200]!r}")
        images = answer.data if isinstance(answer.data, list) else []
        if not images and (problem := _error_in(answer.to_dict())) is not None:
            raise problem
        to_dict = getattr(answer.usage, "to_dict", dict)  # the SDK hands out any JSON as it came
        return Answer([self._part(image, task.text) for image in images], flat_numbers(to_dict()))

    def _part(self, image: Any, prompt: str) -> Part:
        encoded, address = getattr(image, "b64_json", None), getattr(image, "url", None)
        told = rewritten(getattr(image, "revised_prompt", None), prompt)
        try:
            return Part(self._bytes(encoded, address), told)
        except RequestError as damaged:  # the other images of the answer are paid for, and may be whole
            return Part(damaged, told)

    def _bytes(self, encoded: object, address: object) -> bytes:
        if isinstance(encoded, str) and encoded:
            return decode(encoded)
        if not isinstance(address, str) or not address:
            raise RequestError("again", "an empty image came")
        if address.startswith(DATA_URL):
            return decode(address)
        server = self.server
        return download(urljoin(f"{server.base}/", address), self.settings.timeout, server.origin)

    def explain(self, error: Exception) -> RequestError:
        if isinstance(error, self._sdk.APITimeoutError) and type(error.__cause__).__name__ == NO_CONNECTION:
            return RequestError("again", f"no connection within {CONNECT_S:g} s", lost=True, unbilled=True)
        if isinstance(error, self._sdk.APITimeoutError):
            return too_late(self.settings.timeout)
        if isinstance(error, self._sdk.APIStatusError):
            body = error.body if error.body is not None else error.message
            return _problem_of(error.status_code, body, error.response.headers, error.message)
        if isinstance(error, self._sdk.APIConnectionError):
            unsent = type(error.__cause__).__name__ in UNSENT
            return RequestError(
                "again", f"the connection failed: {error.__cause__ or error}", lost=True, unbilled=unsent
            )
        return unexplained(error, self._sdk.OpenAIError)


def _of_own_model(model: str, tasks: Sequence[Task]) -> dict[str, object]:
    """What a server of one's own takes besides: without a seed some draw the same image for all. Several samples go together
    only where the user said that the server takes a list of seeds."""
    first = tasks[0]
    scale = "true_cfg_scale" if TRUE_CFG in model.lower() else "guidance_scale"
    fields: dict[str, object | None] = {
        "seed": first.seed if len(tasks) == 1 else [task.seed for task in tasks],
        "width": first.width,
        "height": first.height,
        "num_inference_steps": first.num_inference_steps,
        scale: first.guidance_scale,
        "negative_prompt": first.negative_prompt,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _problem_of(
    status: int, body: object, headers: Mapping[str, str] | None = None, otherwise: str = ""
) -> RequestError:
    """What an error means, by its status and body; `otherwise` is said where the body says nothing."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    reason = _reason(error) or otherwise or f"HTTP {status}"
    if isinstance(error, Mapping) and (error.get("code") in NO_QUOTA or error.get("type") in NO_QUOTA):
        return RequestError("stop", reason, status=402)
    return by_status(status, reason, headers or {})


def _error_in(answer: Mapping[str, object]) -> RequestError | None:
    """The error that came in place of images, with a status of success."""
    error = answer.get("error") or answer.get("detail") or answer.get("message")
    if not error:
        return None
    reason = _reason(error) or str(error)
    code = error.get("code", error.get("status")) if isinstance(error, Mapping) else None
    if isinstance(code, str) and code.isdecimal():
        code = int(code)
    if isinstance(code, int) and 400 <= code < 600:
        return by_status(code, reason, {})
    return RequestError("again", f"an error came in place of images: {reason}", unbilled=True)


def _reason(body: object) -> str:
    """A server's own words for an error: OpenAI's message, FastAPI's detail (a text, or a list by field), a plain text."""
    if isinstance(body, str):
        return body
    if not isinstance(body, Mapping):
        return ""
    detail = body.get("message") or body.get("detail") or body.get("error")
    if isinstance(detail, list):
        return "; ".join(_of_field(entry) for entry in detail)
    return _reason(detail) if isinstance(detail, Mapping) else str(detail or "")


def _of_field(entry: object) -> str:
    """One entry of FastAPI's list: where, and what is wrong there."""
    if not isinstance(entry, Mapping):
        return str(entry)
    where = entry.get("loc")
    path = ".".join(map(str, where)) if isinstance(where, list) else ""
    return f"{path}: {entry.get('msg', '')}" if path else str(entry.get("msg", entry))
