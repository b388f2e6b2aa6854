"""The Gemini API's batches: the lines of a file are requests to generate_content, with the input images in them.

The token is the job's display name. The lines are written here in the API's own JSON, as the SDK makes it of the same settings.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dglaunch.backends.api.answers import Answer, RequestError, by_status
from dglaunch.backends.api.batch_api import SeenJob
from dglaunch.backends.api.uploads import Upload
from dglaunch.data.task import Record, Task

MARK = "dglaunch-"
"""How the display names of our jobs and files begin."""
MEDIA_TYPE = "jsonl"
"""As the API's documentation has it."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PARTIALLY_SUCCEEDED")
"""States without what they begin with. (The SDK's `done` does not know the last one.)"""
LISTED = 100
IN_CONFIG = ("system_instruction", "safety_settings", "automatic_continuation", "http_options")
"""Settings of the SDK that stand beside the generation's own in a request, or in none."""


class GoogleBatches:
    """See the module's docstring.

    Args:
        client: the SDK's.
        model: --model_name.
        config: the settings of a task's request, as the SDK takes them.
        read: an answer as JSON to what came.
        extra: what --api_extra adds to each request.
        as_it_came: the JSON of the API's last answer: the SDK leaves out why a job failed, and how far it is.
    """

    def __init__(
        self,
        client: Any,
        model: str,
        config: Callable[[Task], Any],
        read: Callable[[dict[str, object]], Answer],
        extra: Mapping[str, object],
        as_it_came: Callable[[], object],
    ) -> None:
        self._client = client
        self._model = model
        self._config = config
        self._read = read
        self._extra = extra
        self._as_it_came = as_it_came

    def line(self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None, name: str) -> Record:
        task = tasks[0]
        config = self._config(task)
        parts: list[Record] = [
            {"inlineData": {"mimeType": kind, "data": base64.b64encode(data).decode()}} for data, kind in images
        ]
        request: Record = {
            "contents": [{"role": "user", "parts": [*parts, {"text": task.text}]}],
            "generationConfig": config.model_dump(
                mode="json", by_alias=True, exclude_none=True, exclude=set(IN_CONFIG)
            ),
        }
        if config.system_instruction is not None:
            request["systemInstruction"] = {"role": "user", "parts": [{"text": config.system_instruction}]}
        if config.safety_settings:
            request["safetySettings"] = [
                setting.model_dump(mode="json", by_alias=True, exclude_none=True) for setting in config.safety_settings
            ]
        return {"key": name, "request": {**request, **self._extra}}

    def upload(self, path: Path, token: str) -> str:
        settings = {"display_name": f"{MARK}{token}", "mime_type": MEDIA_TYPE}
        return str(self._client.files.upload(file=path, config=settings).name)

    def delete(self, file: str) -> None:
        self._client.files.delete(name=file)

    def create(self, file: str, token: str) -> SeenJob:
        job = self._client.batches.create(model=self._model, src=file, config={"display_name": f"{MARK}{token}"})
        return self._seen(job, self._as_it_came())

    def look(self, job_id: str) -> SeenJob:
        return self._seen(self._client.batches.get(name=job_id), self._as_it_came())

    def jobs(self) -> Iterator[SeenJob]:
        return (self._seen(job, None) for job in self._client.batches.list(config={"page_size": LISTED}))

    def cancel(self, job_id: str) -> None:
        self._client.batches.cancel(name=job_id)

    def download(self, file: str) -> None:
        self._client.files.download(file=file)

    def name_in(self, line: Record) -> object:
        return line.get("key")

    def answer(self, line: Record, task: Task) -> Answer:
        response, error = line.get("response"), line.get("error")
        if isinstance(response, dict):
            return self._read(response)
        words = error if isinstance(error, dict) else {}
        code, text = words.get("code"), str(words.get("message") or "no answer stands in its line")
        raise by_status(STATUS_OF.get(code, 500), text, {}) if isinstance(code, int) else RequestError("again", text)

    def _seen(self, job: Any, raw: object) -> SeenJob:
        state = str(getattr(job.state, "name", job.state)).removeprefix("JOB_STATE_").removeprefix("BATCH_STATE_")
        file = job.dest.file_name if job.dest is not None else None
        error = raw.get("error") if isinstance(raw, Mapping) else None
        failed = state == "FAILED"
        return SeenJob(
            id=str(job.name or ""),
            state=state.lower(),
            has_ended=state in ENDED,
            token=str(job.display_name or "").removeprefix(MARK),
            num_done=_num_done(raw),
            files=(file,) if file else (),
            problem=RequestError("again", str(error.get("message"))) if failed and isinstance(error, Mapping) else None,
        )


STATUS_OF = {
    1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 12: 501, 13: 500, 14: 503, 15: 500,
    16: 401, **{status: status for status in range(400, 600)},
}  # fmt: skip
"""The HTTP status of an error in a line, which may carry gRPC's code in its place."""


def _num_done(raw: object) -> int:
    """How many requests have an answer, which the API says in texts."""
    metadata = raw.get("metadata") if isinstance(raw, Mapping) else None
    stats = metadata.get("batchStats") if isinstance(metadata, Mapping) else None
    if not isinstance(stats, Mapping):
        return 0
    texts = [str(stats.get(name, "")) for name in ("successfulRequestCount", "failedRequestCount")]
    return sum(int(text) for text in texts if text.isdecimal() and len(text) < 10)
