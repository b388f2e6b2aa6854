"""Batch jobs that were ordered from an API (--api_batch): the record that an output folder keeps of each.

    .dglaunch-job-3f9c52d07a1be846.json         one for each job of which images are still to come

A record is written before its job is ordered, and is on the disk by then. Its token goes along to the API, so that a job whose
order was never answered (the process was killed, the line was cut) is found in the account's list and not ordered again.

What a job still owes is told by the folder alone: an image that it was ordered for is settled when the ledger has it, when
failures.jsonl says that this job refused it, or when the record says that the job has ended without it.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

from dglaunch import strict_json
from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record, Task
from dglaunch.errors import UserError
from dglaunch.files import read_bytes
from dglaunch.output import ownership
from dglaunch.output.far import far_of
from dglaunch.output.images import Present
from dglaunch.output.ledger import FAILURES, MOST_RUN, OutputFolder
from dglaunch.output.lines import TaskId, row_key_of

API_JOB = "api_job"
"""What the ledger and failures.jsonl call the job that an image came from, or was refused by."""
_TOKEN = re.compile(r"[0-9a-f]{16}")


class Item(NamedTuple):
    """One image that was ordered."""

    row: int
    """The index of its task."""
    sample: int
    key: str
    """Of its task."""
    redo: str = ""
    """The token of the `dglaunch redo` that it was ordered for."""

    @classmethod
    def of(cls, task: Task) -> Self:
        """Return the item that a task is ordered as."""
        return cls(*task.id, task.key, str((task.redo or {}).get("redo", "")))

    @property
    def id(self) -> TaskId:
        return self.row, self.sample


@dataclass(slots=True, kw_only=True)
class BatchJob:
    """One job: what was ordered with it, and how far it is."""

    token: str
    """What the API shows of it, in its list of jobs."""
    backend: str
    server: str
    """The address that it was ordered at; empty: the vendor's own."""
    settings: Record
    """The flags that make its images what they are."""
    ordered: str
    """When, as an ISO time."""
    requests: list[list[Item]]
    """The images of each of its requests, in their order."""
    file: str = ""
    """The API's name of the file with its requests. Before it is known, no job can have been created."""
    id: str = ""
    """The API's name of the job; empty: its order was not answered (yet)."""
    state: str = ""
    """As the API named it last."""
    released: list[TaskId] = field(default_factory=list)
    """What it has ended without: those images are no longer its to make."""

    @classmethod
    def begun(cls, backend: str, server: str, settings: Record, now: str) -> Self:
        """Return a new one, with nothing in it."""
        token = os.urandom(8).hex()
        return cls(token=token, backend=backend, server=server, settings=settings, ordered=now, requests=[])

    @property
    def items(self) -> Iterator[Item]:
        return (item for request in self.requests for item in request)

    def write(self, folder: OutputFolder) -> None:
        """Put it into the folder, in place of what it was before; it is on the disk when this returns.

        Raises:
            OSError: the folder cannot be written.
        """
        text = strict_json.dumps({ownership.WRITTEN_BY: "api_batch", **asdict(self)}, compact=True)
        with atomic_write(folder.batch_job(self.token)) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        descriptor = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if (far := far_of(folder.path)) is not None:  # where two starts cannot see each other's locks
            far.make_sure()

    def forget(self, folder: OutputFolder) -> None:
        """Take the record away: the job owes nothing, or was never ordered."""
        ownership.remove([folder.batch_job(self.token)])


def jobs_of(folder: OutputFolder) -> list[BatchJob]:
    """Return what is recorded in a folder, in the order in which it was ordered.

    Raises:
        UserError: a record cannot be read.
    """
    return sorted((_read(path) for path in folder.batch_jobs()), key=lambda job: (job.ordered, job.token))


def _read(path: Path) -> BatchJob:
    """Anyone may have written it. What cannot be read may be a job that is paid for, so it is not passed over."""
    try:
        found = strict_json.loads(read_bytes(path, MOST_RUN))
        return _job_of(found)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is the record of a batch job, and cannot be read ({error}). Restore it from the folder that it was copied "
            "from; or remove it, and what that job was to make is ordered (and paid for) again."
        ) from None


def _job_of(found: object) -> BatchJob:
    if not isinstance(found, dict) or found.get(ownership.WRITTEN_BY) != "api_batch":
        raise ValueError("it is none")
    texts = {name: found.get(name) for name in ("token", "backend", "server", "ordered", "file", "id", "state")}
    settings, requests, released = found.get("settings"), found.get("requests"), found.get("released")
    if not all(isinstance(text, str) for text in texts.values()) or not _TOKEN.fullmatch(str(texts["token"])):
        raise ValueError("a text in it is none")
    if not isinstance(settings, dict) or not isinstance(requests, list) or not isinstance(released, list):
        raise ValueError("a part of it is missing")
    return BatchJob(
        **{name: str(text) for name, text in texts.items()},
        settings=settings,
        requests=[[_item(each) for each in request] for request in requests if isinstance(request, list)],
        released=[(each[0], each[1]) for each in released if isinstance(each, list) and _are_numbers(each)],
    )


def _item(found: object) -> Item:
    if not isinstance(found, list) or len(found) != 4 or not _are_numbers(found[:2]):
        raise ValueError("an image in it is none")
    return Item(found[0], found[1], str(found[2]), str(found[3]))


def _are_numbers(found: list[object]) -> bool:
    return [type(part) for part in found] == [int, int]


# -- what is still to come ----------------------------------------------------------------------------------------


def open_jobs(folder: OutputFolder) -> list[tuple[BatchJob, list[Item]]]:
    """Return the jobs of a folder that still owe images, and which.

    Raises:
        UserError: a record, or a ledger, cannot be read.
    """
    jobs = jobs_of(folder)
    if not jobs:
        return []
    present, failed = Present(folder), folder.records_by_id(FAILURES)
    done = {task_id: record for task_id, record in folder.records_by_id().items() if present.has(record)}
    owed = [(job, [item for item in job.items if not _is_settled(job, item, done, failed)]) for job in jobs]
    return [(job, items) for job, items in owed if items]


def _is_settled(job: BatchJob, item: Item, done: dict[TaskId, Record], failed: dict[TaskId, Record]) -> bool:
    if not job.file or item.id in job.released:  # without a file it was never ordered
        return True
    if job.id and failed.get(item.id, {}).get(API_JOB) == job.id:
        return True
    record = done.get(item.id)
    if record is None:
        return False
    return record.get("redo") == item.redo if item.redo else item.key in (record["key"], row_key_of(record))


def forget_settled(folder: OutputFolder) -> None:
    """Take away the records of jobs that owe nothing any more."""
    owing = {job.token for job, _ in open_jobs(folder)}
    for job in jobs_of(folder):
        if job.token not in owing:
            job.forget(folder)


def refuse_open_jobs(folder: OutputFolder, remedy: str) -> None:
    """Check that no job is under way: a start that does not wait for it would pay for its images again.

    Raises:
        UserError: one is.
    """
    found = open_jobs(folder)
    if found:
        count = sum(len(items) for _, items in found)
        names = ", ".join(job.id or "one whose order was not answered" for job, _ in found[:5])
        raise UserError(
            f"{folder.path} waits for {count:,} images of {len(found)} batch job{'s' if len(found) > 1 else ''} ({names}), which "
            f"are ordered and will be paid for. {remedy}"
        )
