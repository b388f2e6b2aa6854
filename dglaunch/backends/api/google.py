"""Google's image models with the official SDK: Gemini's native image output (generate_content), and Imagen.

Gemini takes a seed and input images, one image a request. It may think with drafts, which are never the image: the last one
that is no thought is. Imagen (a model name that begins with `imagen`) makes up to four images a request; the SDK offers it
on Vertex AI only. It takes a seed only if its watermark is switched off, which is not ours to do, so none is sent.

With --api_project both are asked on Vertex AI, with application default credentials instead of a key (vertex.py).
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dglaunch import strict_json
from dglaunch.backends.api import vertex
from dglaunch.backends.api.answers import (
    Answer,
    Part,
    RequestError,
    amount,
    by_status,
    flat_numbers,
    rewritten,
    too_late,
    unexplained,
)
from dglaunch.backends.api.backend import ApiBackend
from dglaunch.backends.api.batch_api import BatchApi
from dglaunch.backends.api.checks import extra_fields
from dglaunch.backends.api.description import Api
from dglaunch.backends.api.google_batches import GoogleBatches
from dglaunch.backends.api.models import GEMINI_OPTIONS, Model, model_of, unknown_model
from dglaunch.backends.api.sizes import SizeOf, size_of
from dglaunch.backends.api.uploads import Upload
from dglaunch.config import RemoteConfig, pairs_of
from dglaunch.data.task import Record, Task
from dglaunch.environment import environment

REFUSALS = (
    "SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION", "MODEL_ARMOR",
)  # fmt: skip
"""Finish reasons that another try would not change."""
ENDS = ("PUP_LIMITED_DISABLED",)
"""Finish reasons that every further request would get: the account is limited or disabled."""
NETWORK = ("TimeoutException", "TransportError", "OSError")
"""Base classes of what httpx, its forks and the operating system raise when a connection fails; the SDK uses whichever
is installed."""
TIMEOUT = "TimeoutException"
UNSENT = ("ConnectError", "ConnectTimeout")
"""What fails before a request goes out."""
NO_CREDENTIALS = "RefreshError"
"""google-auth's word for credentials that are refused."""
MOST_TEXT = 4000
"""Characters of the text beside an image that the ledger keeps."""
SET_HERE = frozenset(
    {"contents", "generationConfig", "model", "safetySettings", "systemInstruction", "instances", "parameters"}
)
"""What --api_extra must not set."""


class GoogleBackend(ApiBackend):
    """See the module's docstring."""

    base_variable = "GOOGLE_GEMINI_BASE_URL"

    @staticmethod
    def describe(model: str, servers: tuple[str, ...] = ()) -> Api:
        row, imagen = model_of("google_genai", model), model.startswith("imagen")
        return Api(
            name="the Imagen API" if imagen else "the Gemini API",
            package="google-genai",
            keys=vertex.KEYS,
            fields=frozenset(
                {"width", "height", "negative_prompt", "guidance_scale"} if imagen else {"width", "height"}
            ),
            size=_size_of(model, row),
            max_seed=0 if imagen else 2**31 - 1,
            refused_extra=SET_HERE,
            servers=servers,
            model=row or (unknown_model(4, ()) if imagen else unknown_model(1, GEMINI_OPTIONS)),
            is_known=row is not None,
        )

    @staticmethod
    def takes_credentials(remote: RemoteConfig) -> bool:
        return vertex.project_of(remote, environment()) is not None

    def connect(self, key: str) -> None:
        from google import genai
        from google.genai import errors, types

        self._errors, self._types = errors, types
        self.imagen = self.model.startswith("imagen")
        warnings.filterwarnings(
            "ignore", "The generate_images method is deprecated"
        )  # once a request; Imagen has no other
        options = types.HttpOptions(
            base_url=self.first_base,
            timeout=int(self.settings.timeout * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            client_args={"event_hooks": self.hooks, "limits": _no_limits()},
            extra_body=(not self.settings.api_batch and extra_fields(self.settings.api_extra)) or None,
        )
        project = vertex.project_of(self.settings, environment())
        if project is not None:
            self._genai = genai.Client(
                vertexai=True, project=project.project, location=project.location, credentials=vertex.credentials(),
                http_options=options,
            )  # fmt: skip
        else:
            self._genai = genai.Client(api_key=key or "none", vertexai=self.imagen, http_options=options)
        self.client = self._genai
        self._config = types.GenerateContentConfig(
            response_modalities=["IMAGE"],
            automatic_continuation=False,  # one call is one request, which is counted and may be billed
            system_instruction=self.settings.system_instruction,
            safety_settings=self._safety() or None,
        )

    def _safety(self) -> list[Any]:
        return [
            self._types.SafetySetting(category=category, threshold=threshold)
            for category, threshold in pairs_of("safety_settings", self.settings.safety_settings).items()
        ]

    def probe(self) -> None:
        self._genai.models.get(model=self.model)

    def models(self) -> list[str]:
        return [str(model.name).removeprefix("models/") for model in self._genai.models.list()]

    def request(self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None) -> Answer:
        return self._imagen(tasks) if self.imagen else self._gemini(tasks[0], images)

    def _size(self, task: Task) -> dict[str, str]:
        if task.width is None or task.height is None:
            return {}
        size = self.api.size(task.width, task.height)
        assert isinstance(size, dict), "describe() gave the sizes as settings"
        return size

    def batches(self) -> BatchApi:
        return GoogleBatches(
            self._genai,
            self.model,
            self._config_of,
            self._read_json,
            extra_fields(self.settings.api_extra),
            self.as_it_came,
        )

    def _read_json(self, body: dict[str, object]) -> Answer:
        """An answer that came in a file."""
        said = strict_json.loads(strict_json.dumps(body))  # the SDK drops what it does not know from what it is given
        return self._answer(self._types.GenerateContentResponse._from_response(response=body, kwargs={}), said)

    def _config_of(self, task: Task) -> Any:
        """The SDK's settings of a task's request."""
        settings = pairs_of("image_config", self.settings.image_config) | self._size(task)
        config = self._types.ImageConfig(**settings) if settings else None
        return self._config.model_copy(update={"seed": task.seed, "image_config": config})

    def _gemini(self, task: Task, images: Sequence[Upload]) -> Answer:
        types = self._types
        answer = self._genai.models.generate_content(
            model=self.model,
            contents=[
                *(types.Part.from_bytes(data=data, mime_type=kind) for data, kind in images),
                task.text,
            ],
            config=self._config_of(task),
        )
        return self._answer(answer, self.as_it_came())

    def _answer(self, answer: Any, said: object) -> Answer:
        return Answer([self._gemini_part(answer, said)], _tokens(answer.usage_metadata))

    def _gemini_part(self, answer: Any, raw: object) -> Part:
        """The last image of the answer that is no draft, and the text beside it; or why there is none, which the JSON as it came
        says best."""
        feedback = answer.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            blocked = f"prompt blocked, {feedback.block_reason.value}: {feedback.block_reason_message or ''}"
            return Part(RequestError("refused", blocked))
        candidate = answer.candidates[0] if answer.candidates else None
        parts = (candidate.content.parts or []) if candidate is not None and candidate.content is not None else []
        parts = [part for part in parts if not part.thought]
        said = " ".join(part.text for part in parts if part.text).strip()[:MOST_TEXT]
        told: Record = {"answer_text": said} if said else {}
        blobs = [part.inline_data for part in parts if part.inline_data is not None and part.inline_data.data]
        images = [blob for blob in blobs if (blob.mime_type or "image/").startswith("image/")]
        if images:
            return Part(bytes(images[-1].data), told)
        return Part(_no_image(raw, said, [str(blob.mime_type) for blob in blobs]), told)

    def _imagen(self, tasks: Sequence[Task]) -> Answer:
        first = tasks[0]
        answer = self._genai.models.generate_images(
            model=self.model,
            prompt=first.text,
            config=self._types.GenerateImagesConfig(
                number_of_images=len(tasks),
                negative_prompt=first.negative_prompt,
                guidance_scale=first.guidance_scale,
                include_rai_reason=True,
                **self._size(first),
            ),
        )
        return Answer([_imagen_part(image, first.text) for image in answer.generated_images or []])

    def explain(self, error: Exception) -> RequestError:
        if isinstance(error, self._errors.APIError):
            # Gemini calls a wrong key a bad request.
            status = 401 if "API_KEY_INVALID" in str(error.details) else error.code
            headers = getattr(error.response, "headers", None) or {}
            problem = by_status(status, f"{error.status}: {error.message}", headers)
            problem.retry_after = problem.retry_after if problem.retry_after is not None else _retry_info(error.details)
            return problem
        names = [base.__name__ for base in type(error).__mro__]
        if NO_CREDENTIALS in names:
            return RequestError("stop", f"the application default credentials are refused: {error}", unbilled=True)
        if TIMEOUT in names:
            return too_late(self.settings.timeout)
        if any(name in NETWORK for name in names):
            unsent = type(error).__name__ in UNSENT
            return RequestError("again", f"no answer ({type(error).__name__}): {error}", lost=True, unbilled=unsent)
        return unexplained(error)  # pydantic's is a ValueError


def _tokens(usage: Any) -> dict[str, float]:
    """The numbers of a usage report, with those of its lists by kind: candidates_tokens_details.text."""
    if usage is None:
        return {}
    report = usage.model_dump(mode="json", exclude_none=True)
    numbers = flat_numbers(report)
    for name in ("prompt_tokens_details", "candidates_tokens_details"):
        for entry in report.get(name) or []:
            kind, count = f"{name}.{str(entry.get('modality', '')).lower()}", amount(entry.get("token_count"))
            numbers[kind] = numbers.get(kind, 0.0) + (count or 0.0)
    return numbers


def _no_limits() -> object:
    """Of connections: the gate has the limit. (The SDK's HTTP client keeps 20 open and makes 100 at most.)"""
    try:
        import httpx2 as httpx
    except ImportError:  # older versions of the SDK
        import httpx
    return httpx.Limits(max_connections=None, max_keepalive_connections=None)


def _no_image(answer: object, said: str, kinds: Sequence[str]) -> RequestError:
    """Why an answer has no image; `kinds` are the media types of what it has."""
    answer = answer if isinstance(answer, Mapping) else {}
    error = answer.get("error")
    if isinstance(error, Mapping):
        code, words = error.get("code"), f"{error.get('status', '')}: {error.get('message', '')}"
        return by_status(code, words, {}) if isinstance(code, int) and code >= 400 else RequestError("again", words)
    candidates = answer.get("candidates")
    candidate = candidates[0] if isinstance(candidates, list) and candidates else {}
    reason = str(candidate.get("finishReason", "none given")) if isinstance(candidate, Mapping) else "none given"
    said = str(candidate.get("finishMessage", "") or said) if isinstance(candidate, Mapping) else said
    came = f" ({', '.join(kinds)} came)" if kinds else ""
    text = f"no image came{came}, finish reason {reason}: {said[:500]}"
    if reason in ENDS:
        return RequestError("stop", text)
    return RequestError("refused" if reason in REFUSALS else "again", text)


def _imagen_part(generated: Any, prompt: str) -> Part:
    told = rewritten(generated.enhanced_prompt, prompt)
    if generated.image is not None and generated.image.image_bytes:
        return Part(bytes(generated.image.image_bytes), told)
    return Part(RequestError("refused", f"filtered: {generated.rai_filtered_reason or 'no reason given'}"), told)


def _retry_info(details: object) -> float | None:
    """Google's own way to say Retry-After: a RetryInfo among the details, with a delay such as "32s"."""
    listed = details.get("error", {}).get("details", []) if isinstance(details, dict) else []
    for entry in listed:
        text = str(entry.get("retryDelay", "")) if isinstance(entry, dict) else ""
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?s", text):
            return amount(float(text[:-1]))
    return None


def _size_of(name: str, model: Model | None) -> SizeOf:
    """The table's sizes; a model that it does not know can only be asked for a ratio and a class."""
    if model is not None:
        return size_of(name, model)

    def unknown(width: int, height: int) -> dict[str, str]:
        raise ValueError(
            f"dglaunch does not know the sizes of {name}; leave width and height out, or ask for --image_config "
            "aspect_ratio=16:9 --image_config image_size=2K"
        )

    return unknown
