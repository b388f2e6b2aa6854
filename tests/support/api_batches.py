"""The batch endpoints of the server on loopback (api_servers.py), with their files: OpenAI's and Gemini's.

    server.batches.latency = 0.5        seconds until a job ends
    server.batches.ordered["a fox"]     how often a prompt was ordered, in jobs that were created
    server.batches.trouble.append("drop")

The lines of a job are asked of the server itself, as requests over HTTP: a prompt's markers, and what is counted of it, are those
of any other request. `trouble` holds what befalls the next creations of jobs, one each:

    drop        it is created, and the connection cut in place of an answer
    late        it is created, and the answer comes `HELD_S` seconds later
    500         it is created, and the answer is a server's error
    503         it is not created, and the answer is a server's error
    429         it is not created, and the answer says that there are too many
    fail        it is created, and fails before its first request
    expire      it is created, and expires when half of its requests are answered
    bad line    it is created, and fails as something is wrong with its first line
"""

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qs, urlsplit

HELD_S = 1.0
EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
FAILED = "Enqueued token limit reached for this model"
BAD_LINE = "Invalid value in this line"
OF_GOOGLE = {"completed": "SUCCEEDED", "in_progress": "RUNNING", "validating": "PENDING"}
Body = dict[str, Any]


@dataclass
class Job:
    """A job, as the server keeps it."""

    id: str
    file: str
    token: str
    url: str
    """What its lines ask, if they do not say it themselves."""
    num_lines: int
    trouble: str
    since: float = field(default_factory=time.monotonic)
    state: str = "validating"
    num_done: int = 0
    cancelled: bool = False
    answers: list[Body] = field(default_factory=list)
    errors: list[Body] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    """The names of its files."""


class Batches:
    """Settings may be changed while the server runs."""

    def __init__(self, address: str, key: str | None) -> None:
        self.latency = 0.0
        """Seconds until a job begins."""
        self.pace = 0.0
        """Seconds between two requests of a job."""
        self.lists_after = 0.0
        """Seconds until the list shows a new job."""
        self.trouble: list[str] = []
        self.files: dict[str, bytes] = {}
        self.jobs: dict[str, Job] = {}
        self.ordered: Counter[str] = Counter()
        self.unanswered: Counter[str] = Counter()
        """By prompt: how many jobs have ended without an answer to it."""
        self.stop_after: int | None = None
        """Each job waits for being cancelled once it has so many answers."""
        self.closed = threading.Event()
        self._begin = threading.Event()
        self._address = address
        self._key = key
        self._uploads: dict[str, None] = {}

    def go_on(self) -> None:
        """No job waits any more before it begins."""
        self.latency = 0.0
        self._begin.set()

    # -- HTTP -----------------------------------------------------------------------------------------------------

    def handles(self, path: str) -> bool:
        """Whether a path is one of these endpoints."""
        return re.search(r"/(files|batches)(/|:|$)|:batchGenerateContent$", urlsplit(path).path) is not None

    def handle(self, handler: Any, method: str) -> None:
        """Answer a request; the key was right."""
        path, query = urlsplit(handler.path).path, parse_qs(urlsplit(handler.path).query)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        google = handler._is_google or path.startswith("/upload/")
        if path.startswith("/upload/"):
            return self._upload_google(handler, path, body)
        if path == "/v1/files":
            return handler._send_json(200, self._file(_file_in(handler.headers["Content-Type"], body)))
        if (name := re.search(r"/files/([^/:]+)(/content|:download)?$", path)) is not None:
            return self._of_file(handler, method, name[1], google)
        if path.endswith(":batchGenerateContent"):
            batch = json.loads(body)["batch"]
            file = batch["inputConfig"]["fileName"].removeprefix("files/")
            return self._create(handler, file, batch["displayName"], path.replace(":batchG", ":g"), google)
        if path == "/v1/batches" and method == "POST":
            asked = json.loads(body)
            assert asked["completion_window"] == "24h"
            return self._create(handler, asked["input_file_id"], asked["metadata"], asked["endpoint"], google)
        if path.endswith("/batches"):
            return handler._send_json(200, self._listed(query, google))
        job_id = re.split("[/:]", path.removesuffix(":cancel").removesuffix("/cancel"))[-1]
        if job_id not in self.jobs:
            return handler._send_error(404, f"No batch {job_id}", "not_found")
        if path.endswith("cancel"):
            self.jobs[job_id].cancelled = True
        handler._send_json(200, self._shown(self.jobs[job_id], google))

    def _file(self, data: bytes) -> Body:
        name = f"file-{len(self.files)}"
        self.files[name] = data
        return {"id": name, "object": "file", "bytes": len(data), "created_at": 0, "filename": "x", "purpose": "batch", "status": "processed"}  # fmt: skip

    def _upload_google(self, handler: Any, path: str, body: bytes) -> None:
        if handler.headers.get("X-Goog-Upload-Command") == "start":
            headers = {"X-Goog-Upload-URL": f"{self._address}/upload/v1beta/files", "X-Goog-Upload-Status": "active"}
            return handler._send(200, b"{}", "application/json", headers)
        name = self._file(body)["id"]
        answer = json.dumps({"file": {"name": f"files/{name}", "mimeType": "jsonl"}}).encode()
        handler._send(200, answer, "application/json", {"X-Goog-Upload-Status": "final"})

    def _of_file(self, handler: Any, method: str, name: str, google: bool) -> None:
        if name not in self.files:
            return handler._send_error(404, f"No such File object: {name}", "not_found")
        if method == "DELETE":
            del self.files[name]
            return handler._send_json(200, {} if google else {"id": name, "object": "file", "deleted": True})
        handler._send(200, self.files[name], "application/octet-stream")

    def _create(self, handler: Any, file: str, mark: Any, url: str, google: bool) -> None:
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble in ("503", "429"):
            return handler._send_error(int(trouble), f"trouble {trouble}", "x")
        if file not in self.files:
            return handler._send_error(400, f"No such file: {file}", "x")
        lines = [json.loads(line) for line in self.files[file].splitlines()]
        job = Job(f"batch_{len(self.jobs)}", file, mark, url, len(lines), trouble)
        self.jobs[job.id] = job
        self.ordered.update(_prompt_of(line) for line in lines)
        threading.Thread(target=self._work, args=(job, lines, google), daemon=True).start()
        if trouble == "drop":
            handler.close_connection = True
            return
        if trouble == "late":
            self.closed.wait(HELD_S)
        if trouble == "500":
            return handler._send_error(500, "trouble 500", "x")
        handler._send_json(200, self._shown(job, google))

    # -- what is shown --------------------------------------------------------------------------------------------

    def _listed(self, query: dict[str, list[str]], google: bool) -> Body:
        old = [job for job in self.jobs.values() if time.monotonic() - job.since >= self.lists_after][::-1]
        size = int(query["pageSize" if google else "limit"][0])
        after = query.get("pageToken" if google else "after", [""])[0]
        start = next((n + 1 for n, job in enumerate(old) if job.id == after), 0)
        page = [self._shown(job, google) for job in old[start : start + size]]
        has_more = len(old) > start + size
        if google:
            return {"operations": page} | ({"nextPageToken": old[start + size - 1].id} if has_more else {})
        return {"object": "list", "data": page, "has_more": has_more, "first_id": None, "last_id": None}

    def _shown(self, job: Job, google: bool) -> Body:
        files = {"output_file_id": f"out-{job.id}", "error_file_id": f"err-{job.id}"}
        files = {kind: name for kind, name in files.items() if name in job.written}
        errors = []
        if job.state == "failed":
            bad = job.trouble == "bad line"
            errors = [{"code": "x", "message": BAD_LINE if bad else FAILED, "line": 1 if bad else None, "param": None}]
        if google:
            state = OF_GOOGLE.get(job.state, job.state.upper())
            stats = {"requestCount": str(job.num_lines), "successfulRequestCount": str(job.num_done)}
            metadata = {"displayName": job.token, "state": f"BATCH_STATE_{state}", "batchStats": stats}
            if files:
                metadata["output"] = {"responsesFile": f"files/out-{job.id}"}
            return {"name": f"batches/{job.id}", "metadata": metadata} | (
                {"error": errors[0] | {"code": 8}} if errors else {}
            )
        return {
            "id": job.id, "object": "batch", "endpoint": job.url, "completion_window": "24h", "created_at": 0,
            "input_file_id": job.file, "status": job.state, "metadata": job.token, **files,
            "errors": {"object": "list", "data": errors} if errors else None,
            "request_counts": {"total": job.num_lines, "completed": job.num_done, "failed": len(job.errors)},
        }  # fmt: skip

    # -- the work -------------------------------------------------------------------------------------------------

    def _work(self, job: Job, lines: list[Body], google: bool) -> None:
        self._begin.wait(self.latency)
        if self.closed.is_set():
            return
        if job.trouble in ("fail", "bad line"):
            self.unanswered.update(map(_prompt_of, lines))
            job.state = "failed"
            return
        job.state = "in_progress"
        for n, line in enumerate(lines):
            while n == self.stop_after and not job.cancelled and not self.closed.is_set():
                time.sleep(0.01)
            if job.cancelled or (job.trouble == "expire" and n >= len(lines) / 2):
                self._unanswered(job, lines[n:], google)
                break
            if self.closed.wait(self.pace):
                return
            self._answer(job, line, google)
        else:
            self._end(job, "completed", google)

    def _unanswered(self, job: Job, lines: list[Body], google: bool) -> None:
        self.unanswered.update(map(_prompt_of, lines))
        for line in lines:
            error = {"code": "batch_cancelled", "message": "cancelled"} if job.cancelled else EXPIRED
            if not google:
                job.errors.append({"id": "x", "custom_id": line["custom_id"], "response": None, "error": error})
        self._end(job, "cancelled" if job.cancelled else "expired", google)

    def _answer(self, job: Job, line: Body, google: bool) -> None:
        status, body = self._ask(job.url if google else line["url"], line["request" if google else "body"])
        job.num_done += 1
        if google:
            job.answers.append({"key": line["key"]} | ({"response": body} if status == 200 else body))
        else:
            answer = {"status_code": status, "request_id": "x", "body": body}
            where = job.answers if status == 200 else job.errors
            where.append({"id": "x", "custom_id": line["custom_id"], "response": answer, "error": None})

    def _ask(self, path: str, body: Body) -> tuple[int, Body]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(self._address + path, json.dumps(body).encode(), headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def _end(self, job: Job, state: str, google: bool) -> None:
        for name, lines in ((f"out-{job.id}", job.answers), (f"err-{job.id}", job.errors)):
            if lines:  # not in the order in which they were asked
                job.written.append(name)
                self.files[name] = b"".join(json.dumps(line).encode() + b"\n" for line in reversed(lines))
        job.state = state


def _prompt_of(line: Body) -> str:
    if "body" in line:
        return str(line["body"]["prompt"])
    return str(next(part["text"] for part in line["request"]["contents"][0]["parts"] if "text" in part))


def _file_in(kind: str, body: bytes) -> bytes:
    """The file of a multipart body."""
    form = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}  # type: ignore[attr-defined]
    assert parts["purpose"].get_content().strip() == "batch"
    data = parts["file"].get_payload(decode=True)
    assert isinstance(data, bytes)
    return data
