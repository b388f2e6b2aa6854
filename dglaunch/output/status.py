"""How far a job is, from its output folder alone: while it runs, or after it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from dglaunch.data.task import Record
from dglaunch.output.asked import asked_of
from dglaunch.output.batch_jobs import BatchJob, open_jobs
from dglaunch.output.ledger import FAILURES, OutputFolder
from dglaunch.output.ledger_index import LedgerIndex
from dglaunch.output.shards import shard_of

RECENT = 100
"""Images whose times give the present speed."""
IN_WHOLE_SECONDS = 1.0
"""As a line tells the time: that of an image in a shard is known no better."""


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What one run.json says, and whether its process is alive."""

    name: str
    outcome: str
    """As in run.json."""
    started: str
    is_running: bool

    @property
    def was_killed(self) -> bool:
        """Whether run.json says that it runs, but nothing holds the folder."""
        return self.outcome == "running" and not self.is_running


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """Counts of a job's images, and the runs that make them."""

    runs: list[RunStatus] = field(default_factory=list)
    total: int
    num_done: int
    num_failed: int
    waits_for: list[tuple[BatchJob, int]] = field(default_factory=list)
    """Batch jobs of an API that are under way or not collected, and how many images each is to bring."""
    images_per_s: float | None
    """Over the last RECENT images, while any was under way; None if nothing says how long that was."""

    @property
    def num_left(self) -> int:
        """Images that are not done, those that failed too."""
        return self.total - self.num_done

    @property
    def num_recent(self) -> int:
        return min(self.num_done, RECENT)


def read_status(folder: OutputFolder, node_rank: int | None = None) -> JobStatus:
    """Read how far a job is.

    Args:
        folder: an output folder.
        node_rank: of several nodes without a rendezvous, the one whose runs are looked at; the counts are of them all.
    """
    compared = LedgerIndex.read(folder).compare(with_times=True)
    done = compared.done()
    failed = {task_id for task_id in folder.records_by_id(FAILURES) if task_id not in done}
    asked = asked_of(folder, chain(done, failed), node_rank)
    return JobStatus(
        runs=[_run_status(folder, name, run) for name, run in folder.runs(node_rank).items()],
        total=asked.total,
        num_done=done.num_of(asked.named),
        num_failed=asked.named.num_of(failed),
        waits_for=[(job, len(items)) for job, items in open_jobs(folder)],
        images_per_s=_images_per_s(
            (written, max(float(seconds), IN_WHOLE_SECONDS) if shard_of(line) else float(seconds))
            for written, line in compared.latest(RECENT)
            if isinstance(seconds := line.get("seconds"), int | float)
        ),
    )


def _run_status(folder: OutputFolder, name: str, run: Record) -> RunStatus:
    is_running = folder.is_held(f"{name.removeprefix('run').removesuffix('.json')}*")
    return RunStatus(name, str(run.get("outcome", "unknown")), str(run.get("started")), is_running)


def _images_per_s(images: Iterable[tuple[float, float]]) -> float | None:
    """From when the latest images were written and how long their batches took: the time in which any of these was under way
    counts, and not the breaks between two starts.

    Args:
        images: of each, when it was written, and the seconds of its batch.
    """
    latest = sorted((written - seconds, written) for written, seconds in images)
    working, until = 0.0, float("-inf")
    for begun, ended in latest:
        working += max(ended - max(begun, until), 0.0)
        until = max(until, ended)
    return len(latest) / working if working > 0 else None
