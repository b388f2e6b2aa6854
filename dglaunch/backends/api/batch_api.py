"""What a vendor's batch API is asked for: the few calls that batch_mode.py makes, the same for each.

openai_batches.py and google_batches.py are the two that there are. Each call is one question; whatever the SDK raises is left to
who asks.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from dglaunch.backends.api.answers import Answer, RequestError
from dglaunch.backends.api.uploads import Upload
from dglaunch.data.task import Record, Task

MOST_IMAGES = 2_000
"""Of a job: its answers are a file with all of its images, which passes through the disk (some 5 GB)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """What a vendor takes of batch jobs."""

    requests: int
    """In one file."""
    num_bytes: int
    """Of one file."""
    jobs: int
    """Under way at a time."""


LIMITS: Mapping[str, BatchLimits] = {
    "openai": BatchLimits(requests=50_000, num_bytes=200_000_000, jobs=100),
    "google_genai": BatchLimits(requests=50_000, num_bytes=2_000_000_000, jobs=100),
}
"""By backend. OpenAI's requests and bytes are in its SDK (openai 3.54.0: batch_create_params.py), Google's bytes in its
documentation; Google names no number of requests, and others say 100 jobs. OpenAI names no number of jobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenJob:
    """A job as the API shows it."""

    id: str
    state: str
    has_ended: bool
    token: str = ""
    """Of whoever ordered it; another program's is none of ours."""
    num_done: int = 0
    """Requests that have an answer, as far as the API says."""
    files: tuple[str, ...] = ()
    """Names of the files of its answers."""
    problem: RequestError | None = None
    """Why it failed as a whole."""
    problems: Mapping[int, str] = field(default_factory=dict)
    """What is wrong with single lines of its file, counted from 0."""


class BatchApi(Protocol):
    """A vendor's batch API, with a client that is connected."""

    def line(self, tasks: Sequence[Task], images: Sequence[Upload], mask: Upload | None, name: str) -> Record:
        """Return the line of a job's file that asks for the samples of one row; `name` stands in its answer, too."""
        ...

    def upload(self, path: Path, token: str) -> str:
        """Upload the file of a job; returns the API's name of it."""
        ...

    def delete(self, file: str) -> None:
        """Delete such a file."""
        ...

    def create(self, file: str, token: str) -> SeenJob:
        """Order what stands in a file."""
        ...

    def look(self, job_id: str) -> SeenJob:
        """Return how far a job is."""
        ...

    def jobs(self) -> Iterator[SeenJob]:
        """Yield the account's jobs, the latest first as far as the API has an order."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask for a job to end."""
        ...

    def download(self, file: str) -> None:
        """Ask for a file of answers. Its body does not pass through here: `Asker.spool` writes it to a file."""
        ...

    def name_in(self, line: Record) -> object:
        """Return the name of the request that a line of a file of answers is about."""
        ...

    def answer(self, line: Record, task: Task) -> Answer:
        """Return what such a line has for a request, of whose tasks this is the first.

        Raises:
            RequestError: it has no images.
        """
        ...
