"""What a job says of itself while it runs (run/pulse.py), as a machine reads it that sees the output folder and no more.

Only run*.json is read, which does not grow with the job. Anyone may have written it.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from dglaunch.data.task import Record
from dglaunch.output.far import far_of, read_again
from dglaunch.output.ledger import OutputFolder, object_at

RUNNING = "running"
COMES_BACK_S = 180.0
"""So long after its last word a run that was stopped, or lost a rank, may be started again by torchrun or Slurm."""
ENDED = ("done", "failed")
MOST_RANKS = 1 << 16


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica of a run."""

    rank: int
    node: str
    images_per_s: float
    quiet_s: float
    """For how long it has made nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What the runs of a folder said last, added up."""

    outcomes: tuple[str, ...]
    total: int
    done: int
    failed: int
    images_per_s: float | None
    """None: no run has told yet."""
    seconds_left: float | None
    """Until the last of them is through."""
    replicas: tuple[Replica, ...]
    failures: Mapping[str, int]
    """By kind."""
    num_bytes: int
    """Of the images that these starts have made."""
    bytes_left: int | None
    """Of those that are to be made, if they are as large."""
    bytes_free: int | None
    """Where the folder is; None: that is not known, or it lies in an object store, which has room."""
    said_s: float
    """Seconds since the last word, by the two machines' clocks."""

    @property
    def is_running(self) -> bool:
        return RUNNING in self.outcomes

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be expected."""
        if self.is_running or not self.outcomes:
            return False
        return all(outcome in ENDED for outcome in self.outcomes) or self.said_s > COMES_BACK_S

    @property
    def nodes(self) -> dict[str, tuple[int, float]]:
        """The number of replicas and the images a second of each machine, by name."""
        found: dict[str, tuple[int, float]] = {}
        for replica in self.replicas:
            count, speed = found.get(replica.node, (0, 0.0))
            found[replica.node] = count + 1, speed + replica.images_per_s
        return found

    def slowest(self, count: int) -> list[Replica]:
        """Return the slowest replicas, those that have been silent for longest first."""
        return sorted(self.replicas, key=lambda replica: (replica.images_per_s, -replica.quiet_s))[:count]


def watched(folder: OutputFolder) -> Watched:
    """Read what the runs of a folder, one or that of each independent node, have said last.

    Raises:
        UserError: it lies in an object store that cannot be read.
    """
    read_again(folder.path, only_runs=True)
    runs = list(folder.runs().values())
    told = [run for run in runs if _number(run, "images_per_s") is not None]
    made = sum(int(_number(run, "num_ok") or 0) for run in told)
    total, done = _sum(runs, "num_total"), _sum(runs, "num_ok") + _sum(runs, "num_skipped")
    failed, num_bytes = _sum(runs, "num_failed"), _sum(runs, "bytes")
    left = [seconds for run in runs if (seconds := _number(run, "seconds_left")) is not None and _is_running(run)]
    failures: Counter[str] = Counter()
    for run in runs:
        kinds = object_at(run, "failures_by_kind")
        failures.update({str(kind): count for kind, count in kinds.items() if isinstance(count, int)})
    running = [run for run in told if _is_running(run)]
    return Watched(
        outcomes=tuple(str(run.get("outcome")) for run in runs),
        total=total,
        done=done,
        failed=failed,
        images_per_s=sum(_number(run, "images_per_s") or 0.0 for run in running) if running else None,
        seconds_left=max(left, default=None),
        replicas=tuple(replica for run in running for replica in _replicas(run)),
        failures=failures,
        num_bytes=num_bytes,
        bytes_left=round(num_bytes / made * max(total - done - failed, 0)) if made and num_bytes else None,
        bytes_free=_free(folder),
        said_s=min((_age_s(run) for run in runs), default=0.0),
    )


def _is_running(run: Record) -> bool:
    return run.get("outcome") == RUNNING


def _number(record: Mapping[str, object], name: str) -> float | None:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _sum(runs: Iterable[Record], name: str) -> int:
    return sum(int(_number(run, name) or 0) for run in runs)


def _replicas(run: Record) -> Iterable[Replica]:
    listed = run.get("replicas")
    for told in listed[:MOST_RANKS] if isinstance(listed, list) else []:
        if isinstance(told, dict):
            speed, quiet = _number(told, "images_per_s"), _number(told, "quiet_s")
            yield Replica(int(_number(told, "rank") or 0), str(told.get("node", "")), speed or 0.0, quiet or 0.0)


def _age_s(run: Record) -> float:
    with suppress(ValueError, TypeError):
        return max((datetime.now(UTC) - datetime.fromisoformat(str(run.get("ended")))).total_seconds(), 0.0)
    return float("inf")


def _free(folder: OutputFolder) -> int | None:
    if far_of(folder.path) is not None:  # the disk here holds the working folder only
        return None
    with suppress(OSError):
        return shutil.disk_usage(folder.path).free
    return None
