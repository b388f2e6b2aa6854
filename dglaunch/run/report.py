"""What rank 0 tells: progress while the run goes on, a table at the end, and run.json. Other ranks are silent."""

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dglaunch.data.task import Result
from dglaunch.errors import DglaunchError

LOG_EVERY_S = 10.0


@dataclass(slots=True)
class Counts:
    """ok + failed + skipped = total: nothing goes silently away (but what a stopped run has not reached)."""

    num_ok: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    """Done by an earlier start."""
    total: int = 0


@dataclass(slots=True)
class LeaderReport:
    """What each replica's leader says at its end; plain values, sent to rank 0."""

    started: float
    """Clock time of its first batch's start."""
    inside: float
    """Seconds inside the pipeline."""
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    drained: bool = False
    events: list[str] = field(default_factory=list)
    usage: dict[str, float] = field(default_factory=dict)
    """What a remote backend's answers add up to: requests, retries, tokens, cost."""
    error: DglaunchError | None = None
    """Why this rank stopped before its end, although all that it made is whole."""


class Report:
    """Progress and totals on rank 0."""

    def __init__(self, total: int, skipped: int, console: Console | None = None) -> None:
        self.counts = Counts(num_skipped=skipped, total=total)
        self.console = console if console is not None else Console(stderr=True, soft_wrap=True)
        self.started = time.time()
        self.last_written = self.started
        self.by_rank: Counter[int] = Counter()
        self._last_log = time.monotonic()
        self._begun = self._last_log
        self._progress: Progress | None = None
        self._bar: Any = None

    def begin(self) -> None:
        """The first batch starts."""
        self.started = self.last_written = time.time()
        self._begun = self._last_log = time.monotonic()
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
            self._progress = Progress(*columns, console=self.console)
            self._bar = self._progress.add_task(
                "", total=self.counts.total, state="", completed=self.counts.num_skipped
            )
            self._progress.start()

    def update(self, result: Result) -> None:
        """One result was written."""
        self.last_written = time.time()
        if result.failed:
            self.counts.num_failed += 1
            self.console.print(
                f"image {result.file_name} failed on rank {result.record['rank']}: {result.record['error']}"
            )
        else:
            self.counts.num_ok += 1
        self.by_rank[result.record["rank"]] += 1
        if self._progress is not None:
            done = self.counts.num_skipped + self.counts.num_ok + self.counts.num_failed
            self._progress.update(self._bar, completed=done, state=self._state())
        elif time.monotonic() - self._last_log >= LOG_EVERY_S:
            self._last_log = time.monotonic()
            self.console.print(self._line())

    def _state(self) -> str:
        spread = ""
        if len(self.by_rank) > 1:
            spread = f", {min(self.by_rank.values())}-{max(self.by_rank.values())} a replica"
        return f"{self.images_per_s:.2f} images/s, {self.counts.num_failed} failed{spread}"

    def _line(self) -> str:
        counts = self.counts
        done = counts.num_skipped + counts.num_ok + counts.num_failed
        left = (counts.total - done) / self.images_per_s if self.images_per_s else 0.0
        return f"{done:,} of {counts.total:,} images, {self._state()}, about {duration(left)} left"

    @property
    def images_per_s(self) -> float:
        elapsed = time.monotonic() - self._begun
        return self.counts.num_ok / elapsed if elapsed > 0 else 0.0

    def note(self, text: str) -> None:
        """A line that stays on the terminal."""
        self.console.print(text, highlight=False)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def summary(self, leaders: dict[int, LeaderReport], load_seconds: float) -> dict[str, Any]:
        """The measured part of run.json.

        `pipeline_share` is the part of the wall time, between the first batch's start on any replica and the last
        image or failure written, that the replicas spent inside the pipeline, on average.
        """
        seconds: Counter[str] = Counter({"load": load_seconds})
        begun = [leader.started for leader in leaders.values() if leader.inside]
        inside = sum(leader.inside for leader in leaders.values())
        longest = max((leader.inside for leader in leaders.values()), default=0.0)  # a drained run leaves a batch
        window = max(self.last_written - min(begun), longest, 1e-9) if begun else 0.0
        for leader in leaders.values():
            seconds.update({stage: value / max(len(leaders), 1) for stage, value in leader.seconds.items()})
        usage: Counter[str] = Counter()
        for leader in leaders.values():
            usage.update(leader.usage)
        if leaders:
            seconds["wait"] = max(window - inside / len(leaders), 0.0)
        return {
            "num_ok": self.counts.num_ok,
            "num_failed": self.counts.num_failed,
            "num_skipped": self.counts.num_skipped,
            "num_total": self.counts.total,
            "images_per_s": self.counts.num_ok / window if window else 0.0,
            "wall_s": window,
            "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
            "pipeline_share": round(inside / (len(leaders) * window), 4) if begun and self.counts.num_ok else None,
            "images_by_rank": {str(rank): count for rank, count in sorted(self.by_rank.items())},
            "peak_memory_bytes": max((leader.peak_memory for leader in leaders.values()), default=0),
            "usage": {name: round(value, 6) for name, value in sorted(usage.items())},
            "events": [f"rank {rank}: {text}" for rank, leader in sorted(leaders.items()) for text in leader.events],
        }

    def table(self, summary: dict[str, Any], folder: object) -> None:
        """The end of the run, for people."""
        self.stop()
        table = Table(title=f"{summary['outcome']}: {folder}", show_header=False, title_justify="left")
        rows = {
            "images": f"{summary['num_ok']:,} made, {summary['num_failed']:,} failed, {summary['num_skipped']:,} there before, "
            f"of {summary['num_total']:,}",
            "speed": f"{summary['images_per_s']:.3g} images/s over {duration(summary['wall_s'])}",
            "seconds by stage": ", ".join(f"{stage} {value:.2f}" for stage, value in summary["seconds"].items()),
        }
        if summary["pipeline_share"] is not None:
            rows["inside the pipeline"] = f"{summary['pipeline_share']:.1%} of the wall time"
        if summary["peak_memory_bytes"]:
            rows["peak memory"] = f"{summary['peak_memory_bytes'] / 2**30:.2f} GiB a rank"
        if len(summary["images_by_rank"]) > 1:
            rows["images by rank"] = ", ".join(f"{rank}: {n}" for rank, n in summary["images_by_rank"].items())
        if summary["usage"]:
            rows["usage"] = ", ".join(f"{name} {value:,.6g}" for name, value in summary["usage"].items())
        for name, value in rows.items():
            table.add_row(name, value)
        self.console.print(table)
        for event in summary["events"]:
            self.note(event)
        if summary["num_failed"]:
            self.note(
                f"What failed, with its errors: {folder}/failures.jsonl. Starting the same command again retries it."
            )


def number(count: int, noun: str) -> str:
    """1 image, 2 images, 1,000 batches."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('ch') else 's'}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def command_line() -> list[str]:
    return [os.path.basename(sys.executable), *sys.argv]
