"""What a run says of itself while it goes on, on rank 0: run.json every half minute, and --metrics_file beside it.

The one can be read from anywhere that sees the folder; the other is for a node exporter. Both go on whether images come or not:
loading, encoding prompts ahead and compiling take minutes.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record
from dglaunch.errors import OutputError, UserError
from dglaunch.files import open_regular
from dglaunch.run.journal import Journal
from dglaunch.run.rates import Rates
from dglaunch.run.report import Report

EVERY_S = 30.0
PREFIX = "dglaunch_"
FIRST_LINE = f"# TYPE {PREFIX}images_made counter"
"""Of a file of metrics: it says that the file is dglaunch's own."""


class Pulse:
    """A Pulse refreshes run.json and the file of metrics every EVERY_S seconds, on a thread of its own."""

    def __init__(
        self,
        report: Report,
        journal: Journal,
        leaders: Sequence[int],
        metrics: Path | None,
        labels: Mapping[str, str],
    ) -> None:
        """
        Args:
            leaders: the rank of each replica that results come from.
            metrics: the file for a node exporter; None for none.
            labels: of each metric.
        """
        self._report = report
        self._journal = journal
        self._metrics = metrics
        self._labels = labels
        self._leaders = leaders
        self._rates = Rates(leaders, report.begun)
        self._begun = report.begun
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="pulse", daemon=True)

    def start(self) -> None:
        """Beat until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._thread.join()

    def _keep_beating(self) -> None:
        while not self._ended.wait(EVERY_S):
            self.beat()

    def beat(self) -> None:
        """Refresh both. What cannot be refreshed (a full disk) waits for the next time: the images say it, too."""
        with suppress(OSError):  # first: that file is never in an object store, which may be slow
            self.write_metrics(is_running=True)
        with suppress(OutputError):
            said = {**asdict(self._report.counts), **self._report.progress(), "replicas": self._replicas()}
            self._journal.refresh({"outcome": "running", **said})

    def _replicas(self) -> list[Record]:
        """How fast each is, for `dglaunch status --watch`; from the first batch on, when there is one."""
        now = time.monotonic()
        if self._begun != self._report.begun:
            self._begun = self._report.begun
            self._rates = Rates(self._leaders, self._begun)
        self._rates.note(now, self._report.by_rank)
        quiet = self._rates.quiet_s()
        return [
            {
                "rank": rank, "node": self._journal.host_of(rank), "images_per_s": round(speed, 4),
                "quiet_s": round(quiet[rank]),
            }
            for rank, speed in self._rates.per_second().items()
        ]  # fmt: skip

    def write_metrics(self, is_running: bool) -> None:
        """Replace the file of metrics, if there is to be one.

        Raises:
            OSError: it cannot be written.
        """
        if self._metrics is not None:
            with atomic_write(self._metrics) as temporary:
                temporary.write_text("".join(_lines(self._report, self._labels, is_running)), encoding="utf-8")


def check_metrics_file(path: Path) -> None:
    """See that a file of metrics can be written, and replaces at most an earlier one.

    Raises:
        UserError: there is another file, or no folder for it.
    """
    if not path.parent.is_dir():
        raise UserError(f"--metrics_file {path}: there is no folder {path.parent}. Make it, or name another file.")
    if not path.exists() and not path.is_symlink():
        return
    with suppress(OSError), open_regular(path) as data:
        if data.readline().decode(errors="replace").rstrip("\n") == FIRST_LINE and not path.is_symlink():
            return
    raise UserError(f"--metrics_file {path} is there, and it is no file of dglaunch's metrics. Name another file.")


def _lines(report: Report, labels: Mapping[str, str], is_running: bool) -> Iterator[str]:
    """OpenMetrics text 1.0 (github.com/prometheus/OpenMetrics): a type for each metric, its samples, and # EOF."""
    counts = report.counts
    yield from _metric("images_made", "counter", [({}, counts.num_there)], labels)
    yield from _metric("images_failed", "counter", [({}, counts.num_failed)], labels)
    yield from _metric("images_wanted", "gauge", [({}, counts.num_total)], labels)
    yield from _metric("images_per_second", "gauge", [({}, report.images_per_s)], labels)
    yield from _metric("running", "gauge", [({}, int(is_running))], labels)
    yield from _metric("updated_timestamp_seconds", "gauge", [({}, round(time.time(), 3))], labels)
    by_rank = [({"rank": rank}, count) for rank, count in report.images_by_rank.items()]
    yield from _metric("rank_images", "counter", by_rank, labels)
    yield "# EOF\n"


def _metric(
    name: str, kind: str, samples: Sequence[tuple[dict[str, str], float]], labels: Mapping[str, str]
) -> Iterator[str]:
    yield f"# TYPE {PREFIX}{name} {kind}\n"
    suffix = "_total" if kind == "counter" else ""
    for own, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in {**labels, **own}.items())
        yield f"{PREFIX}{name}{suffix}{{{inside}}} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
