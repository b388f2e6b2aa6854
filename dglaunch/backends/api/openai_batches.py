"""OpenAI's Batch API: the lines of a file are requests to /v1/images/generations or /v1/images/edits.

An edit's images go into its line as data: URLs, as the JSON form of an edit takes them. The token is the job's metadata.
"""

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dglaunch.backends.api.answers import Answer, RequestError
from dglaunch.backends.api.batch_api import SeenJob
from dglaunch.backends.api.uploads import Upload
from dglaunch.data.task import Record, Task

WINDOW = "24h"
"""The only one that there is."""
MARK = "dglaunch"
"""In a job's metadata."""
ENDED = ("completed", "failed", "expired", "cancelled")
LISTED = 100
"""Jobs in one answer of the list, at the most that the API gives."""


class OpenAIBatches:
    """See the module's docstring.

    Args:
        client: the SDK's.
        edits: whether the requests are edits.
        arguments: what the SDK's method would be called with for the samples of one row.
        read: an answer's body as JSON, and the first of its tasks, to what came.
        problem: an error's status, body and code to what it means.
    """

    def __init__(
        self,
        client: Any,
        edits: bool,
        arguments: Callable[[Sequence[Task]], dict[str, Any]],
        read: Callable[[Mapping[str, object], Task], Answer],
        problem: Callable[[int, object], RequestError],
    ) -> None:
        self._client = client
        self._endpoint = "/v1/images/edits" if edits else "/v1/images/generations"
        self._arguments = arguments
        self._read = read
        self._problem = problem

    def line(self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None, name: str) -> Record:
        body = self._arguments(tasks)
        body |= body.pop("extra_body", {})
        if images:
            body["images"] = [_as_url(image) for image in images]
        if mask is not None:
            body["mask"] = _as_url(mask)
        return {"custom_id": name, "method": "POST", "url": self._endpoint, "body": body}

    def upload(self, path: Path, token: str) -> str:
        with path.open("rb") as lines:
            name = f"{MARK}-{token}.jsonl"
            return str(self._client.files.create(file=(name, lines, "application/jsonl"), purpose="batch").id)

    def delete(self, file: str) -> None:
        self._client.files.delete(file)

    def create(self, file: str, token: str) -> SeenJob:
        job = self._client.batches.create(
            input_file_id=file, endpoint=self._endpoint, completion_window=WINDOW, metadata={MARK: token}
        )
        return self._seen(job)

    def look(self, job_id: str) -> SeenJob:
        return self._seen(self._client.batches.retrieve(job_id))

    def jobs(self) -> Iterator[SeenJob]:
        return (self._seen(job) for job in self._client.batches.list(limit=LISTED))

    def cancel(self, job_id: str) -> None:
        self._client.batches.cancel(job_id)

    def download(self, file: str) -> None:
        self._client.files.content(file)

    def name_in(self, line: Record) -> object:
        return line.get("custom_id")

    def answer(self, line: Record, task: Task) -> Answer:
        response, error = line.get("response"), line.get("error")
        if isinstance(response, dict):
            status, body = response.get("status_code"), response.get("body")
            if isinstance(status, int) and status >= 400:
                raise self._problem(status, body)
            if isinstance(body, dict):
                return self._read(body, task)
        words = error if isinstance(error, dict) else {}
        raise RequestError("again", str(words.get("message") or words.get("code") or "no answer stands in its line"))

    def _seen(self, job: Any) -> SeenJob:
        """Compatible servers may leave any field out."""
        counts, metadata = job.request_counts, job.metadata
        errors = getattr(job.errors, "data", None) or []
        said = "; ".join(str(error.message or error.code) for error in errors if error.line is None)
        failed = job.status == "failed"
        codes = [error.code for error in errors]
        return SeenJob(
            id=str(job.id or ""),
            state=str(job.status),
            has_ended=job.status in ENDED,
            token=str(metadata.get(MARK, "")) if isinstance(metadata, Mapping) else "",
            num_done=(counts.completed or 0) + (counts.failed or 0) if counts is not None else 0,
            files=tuple(str(file) for file in (job.output_file_id, job.error_file_id) if file),
            problem=self._problem(400, {"message": said, "code": codes[0] if codes else None})
            if failed and said
            else None,
            problems={error.line - 1: str(error.message or error.code) for error in errors if error.line},
        )


def _as_url(image: Upload) -> dict[str, str]:
    return {"image_url": f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"}
