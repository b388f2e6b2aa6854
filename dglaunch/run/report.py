"""What rank 0 says: the plan, progress while the run goes on, and a table at the end. Other ranks are silent."""

import importlib.util
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dglaunch.backends.profiles import money
from dglaunch.data.prompt_windows import CUT, CUT_FOR, NEGATIVE, Longest, longest
from dglaunch.data.task import Record, Result
from dglaunch.distributed.messages import message
from dglaunch.errors import DglaunchError
from dglaunch.planning.job import Job, Schedule
from dglaunch.run.result import Counts, Outcome, headline, last_words
from dglaunch.terminal import Terminal

LOG_EVERY_S = 10.0
"""Between two lines of progress at first, where no bar can be drawn."""
LINES_AT_A_PACE = 8
"""Then the pause doubles: a day has 80 lines, a month 120, a year 150."""
FAILURES_TOLD = 20
"""Failures with a line of their own; failures.jsonl has them all."""
ERROR_LENGTH = 400
"""Characters of a failure that its line shows."""
EVENTS_TOLD = 10
RANKS_TOLD = 16
KIND_LENGTH = 80
MOST_KINDS = 20
NUMBERS = re.compile(r"\d+")


@message
@dataclass(slots=True)
class LeaderReport:
    """A LeaderReport is what each replica's leader says at its end; plain values, sent to rank 0."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A Summary is the measured part of run.json, under the names and in the order that it has there."""

    num_ok: int
    num_failed: int
    num_skipped: int
    num_total: int
    images_per_s: float
    wall_s: float
    """Between the first batch's start on any replica and the last image or failure written."""
    seconds: dict[str, float]
    pipeline_share: float | None
    """The part of wall_s that the replicas spent inside the pipeline, on average."""
    images_by_rank: dict[str, int]
    peak_memory_bytes: int
    planned_memory_bytes: int | None = None
    """What `plan` says of it, on a GPU."""
    usage: dict[str, float]
    events: list[str]
    outcome: Outcome
    num_batches: int
    num_rows_cut: int
    """Rows with a prompt that no text encoder read to its end."""


class CutPrompts:
    """Cut prompts are counted over the results of a run: those that lost their ends, and those that one text encoder of
    several reads to the end."""

    def __init__(self, key: str) -> None:
        """
        Args:
            key: of a ledger line, without `negative_`.
        """
        self.rows: set[object] = set()
        """Their indexes."""
        self.longest: Longest | None = None
        self._keys = (key, NEGATIVE + key)

    def add(self, record: Record) -> None:
        """Look at a result's ledger line."""
        cuts = [record[key] for key in self._keys if key in record]
        if found := longest(cuts):
            self.rows.add(record["index"])
            self.longest = max(found, self.longest or found)


class Report:
    """A Report counts results and shows progress and totals on rank 0."""

    def __init__(self, total: int, skipped: int, terminal: Terminal | None = None) -> None:
        self.counts = Counts(num_skipped=skipped, num_total=total)
        self.terminal = terminal if terminal is not None else Terminal(stderr=True)
        self.by_rank: Counter[int] = Counter()
        self.failures: Counter[str] = Counter()
        """By the kind of their errors."""
        self.num_bytes = 0
        """Of the images of this start."""
        self.cut, self.cut_for_some = CutPrompts(CUT), CutPrompts(CUT_FOR)
        self.cost_before = 0.0
        """US dollars that earlier starts have paid an API."""
        self._last_written = time.time()
        self._last_log = time.monotonic()
        self._lines_told = 0
        self._begun = self._last_log
        self._progress: Progress | None = None
        self._bar = TaskID(0)

    def begin(self) -> None:
        """The first batch starts."""
        self._last_written = time.time()
        self._begun = self._last_log = time.monotonic()
        has_widgets = _has_widgets(self.terminal)
        if self.terminal.redraws or has_widgets:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}", markup=False),
                TimeRemainingColumn(),
            )
            console = Terminal(force_jupyter=True) if has_widgets else self.terminal
            self._progress = Progress(
                *columns, console=console, redirect_stdout=not has_widgets, redirect_stderr=not has_widgets
            )
            self._bar = self._progress.add_task(
                "", total=self.counts.num_total, state="", completed=self.counts.num_skipped
            )
            self._progress.start()

    def update(self, result: Result) -> None:
        """One result was written."""
        self._last_written = time.time()
        rank = result.record["rank"]
        assert isinstance(rank, int)
        self.by_rank[rank] += 1
        self.num_bytes += result.num_bytes
        self.cut.add(result.record)
        self.cut_for_some.add(result.record)
        if result.failed:
            self._count_failure(result, rank)
        else:
            self.counts.num_ok += 1
        if self._progress is not None:
            self._progress.update(self._bar, completed=self.counts.num_settled, state=self._state())
        elif time.monotonic() - self._last_log >= LOG_EVERY_S * 2 ** (self._lines_told // LINES_AT_A_PACE):
            self._last_log = time.monotonic()
            self._lines_told += 1
            self.note(self._line())

    def progress(self) -> Record:
        """What run.json says besides the counts while the run goes on. A thread asks beside the one that counts: `dict` copies what
        is counted in one step."""
        rate = self.images_per_s
        left = self.counts.num_total - self.counts.num_settled
        return {
            "images_per_s": round(rate, 4),
            "seconds_left": round(left / rate) if rate else None,
            "images_by_rank": self.images_by_rank,
            "bytes": self.num_bytes,
            "failures_by_kind": dict(Counter(dict(self.failures)).most_common(MOST_KINDS)),
        }

    def _count_failure(self, result: Result, rank: int) -> None:
        self.counts.num_failed += 1
        error = str(result.record["error"])
        kind = NUMBERS.sub("N", " ".join(error.split()))[:KIND_LENGTH]
        if kind in self.failures or len(self.failures) < MOST_KINDS:
            self.failures[kind] += 1
        if self.counts.num_failed <= FAILURES_TOLD:
            self.note(f"image {result.file_name} failed on rank {rank}: {_in_a_line(error)}")
        elif self.counts.num_failed == FAILURES_TOLD + 1:
            self.note("More images failed; their errors stand in failures.jsonl.")

    def _state(self) -> str:
        spread = ""
        if len(self.by_rank) > 1:
            spread = f", {min(self.by_rank.values())}-{max(self.by_rank.values())} a replica"
        return f"{self.images_per_s:.2f} images/s, {self.counts.num_failed} failed{spread}"

    def _line(self) -> str:
        done, total = self.counts.num_settled, self.counts.num_total
        left = (total - done) / self.images_per_s if self.images_per_s else 0.0
        return f"{done:,} of {total:,} images, {self._state()}, about {duration(left)} left"

    @property
    def begun(self) -> float:
        """When the first batch began, by time.monotonic()."""
        return self._begun

    @property
    def images_per_s(self) -> float:
        """Images made in this start, by the seconds since its first batch began."""
        elapsed = time.monotonic() - self._begun
        return self.counts.num_ok / elapsed if elapsed > 0 else 0.0

    @property
    def images_by_rank(self) -> dict[str, int]:
        """As run.json has it."""
        return {str(rank): count for rank, count in sorted(dict(self.by_rank).items())}

    def note(self, text: str) -> None:
        """A line that stays on the terminal."""
        self.terminal.print(text)

    def stopped(self) -> None:
        """The very last of a run that was stopped."""
        self.note(last_words(self.counts))

    def stop(self) -> None:
        """End the progress display. Stopping twice does nothing."""
        if self._progress is not None:
            self._progress.refresh()  # in a notebook rich does not, and the bar would stay short of its end
            self._progress.stop()
            self._progress = None

    # -- before and after -----------------------------------------------------------------------------------------

    def plan(self, job: Job, schedule: Schedule, damaged: int) -> None:
        """Say what is about to be done."""
        self.note(
            f"{job.config.backend.model_name} ({job.checkpoint.pipeline_name}) on {job.machine.name}, "
            f"{job.machine.dtype}: {job.topology.describe()}"
        )
        for name, reason in schedule.reasons.items():
            self.note(f"{name} {reason}")
        if damaged:
            self.note("The last run left a torn ledger line, or images were removed or damaged; those are made again.")
        plan, extra = schedule.plan, schedule.num_extra_batches
        text = f"{number(plan.num_tasks, 'image')} in {number(plan.num_batches, 'batch')} to make"
        if self.counts.num_skipped:
            text += f"; {self.counts.num_skipped:,} are there already"
        if job.config.edits and extra:
            text += f"; without its different sizes and images it would be {plan.num_batches - extra:,}"
        self.note(text)
        if job.redo is not None and schedule.unmakeable:
            count, first = number(len(schedule.unmakeable), "image"), schedule.unmakeable[0]
            self.note(
                f"{count} cannot be made, whatever the seed, as the input is still broken (index {first.index}: {first.error}). "
                "Mend it, then start the same command again."
            )
        if not plan.num_tasks and job.redo is None and job.config.filter_rows is not None:
            self.note(f"To make them again: dglaunch redo {job.config.output_dir} --filter_rows ...")

    def summary(
        self, leaders: Mapping[int, LeaderReport], load_seconds: float, outcome: Outcome, num_batches: int
    ) -> Summary:
        """What the run measured, of all leaders together."""
        begun = [leader.started for leader in leaders.values() if leader.inside]
        inside = sum(leader.inside for leader in leaders.values())
        longest = max((leader.inside for leader in leaders.values()), default=0.0)  # a drained run leaves a batch
        window = max(self._last_written - min(begun), longest, 1e-9) if begun else 0.0
        seconds = {"load": load_seconds}
        for leader in leaders.values():
            for stage, taken in leader.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + taken / len(leaders)
        if leaders:
            seconds["wait"] = max(window - inside / len(leaders), 0.0)
        usage: dict[str, float] = {}
        for leader in leaders.values():
            for name, amount in leader.usage.items():
                usage[name] = usage.get(name, 0) + amount
        counts = self.counts
        return Summary(
            num_ok=counts.num_ok,
            num_failed=counts.num_failed,
            num_skipped=counts.num_skipped,
            num_total=counts.num_total,
            images_per_s=counts.num_ok / window if window else 0.0,
            wall_s=window,
            seconds={stage: round(value, 4) for stage, value in seconds.items()},
            pipeline_share=round(inside / (len(leaders) * window), 4) if begun and counts.num_ok else None,
            images_by_rank=self.images_by_rank,
            peak_memory_bytes=max((leader.peak_memory for leader in leaders.values()), default=0),
            usage={name: round(value, 6) for name, value in sorted(usage.items())},
            events=[f"rank {rank}: {text}" for rank, leader in sorted(leaders.items()) for text in leader.events],
            outcome=outcome,
            num_batches=num_batches,
            num_rows_cut=len(self.cut.rows),
        )

    def _cuts(self) -> str:
        """In one line, what the text encoders did not read; "" if they read all."""
        said = []
        if (cut := self.cut.longest) is not None:
            said.append(
                f"{number(len(self.cut.rows), 'row')} lost the end of a prompt: the longest has {cut.tokens:,} tokens, of which "
                f"{cut.encoder} reads {cut.read:,} (the ledger's {CUT} says which; --on_long_prompt fail refuses them)."
            )
        if (part := self.cut_for_some.longest) is not None:
            said.append(
                f"Of {number(len(self.cut_for_some.rows), 'row')} {part.encoder} reads only the first {part.read:,} tokens (the "
                f"longest has {part.tokens:,}), while another text encoder reads the whole prompt."
            )
        return " ".join(said)

    def end(self, summary: Summary, folder: object) -> None:
        """The end of the run, for people."""
        self.stop()
        is_stopped = summary.outcome == "drained"  # its headline comes last
        self.note(f"{'What is there is' if is_stopped else headline(summary.outcome, self.counts) + ','} in {folder}")
        table = Table(show_header=False)
        for name, value in (_rows(summary) | _cost_rows(summary.usage, self.cost_before)).items():
            table.add_row(name, value)
        self.terminal.print(table)
        for event in summary.events[:EVENTS_TOLD]:
            self.note(_in_a_line(event))
        if len(summary.events) > EVENTS_TOLD:
            self.note(f"{len(summary.events) - EVENTS_TOLD:,} more events of this kind stand in run.json.")
        if cuts := self._cuts():
            self.note(cuts)
        if summary.num_failed:
            self.note(
                f"What failed, with its errors: {folder}/failures.jsonl. Starting the same command again retries it."
            )


def _has_widgets(terminal: Terminal) -> bool:
    """Whether a notebook can show a bar; rich needs ipywidgets for it."""
    return terminal.in_notebook and importlib.util.find_spec("ipywidgets") is not None


def _rows(summary: Summary) -> dict[str, str]:
    rows = {
        "images": f"{summary.num_ok:,} made, {summary.num_failed:,} failed, {summary.num_skipped:,} there before, "
        f"of {summary.num_total:,}",
        "speed": f"{summary.images_per_s:.3g} images/s over {duration(summary.wall_s)}",
        "seconds by stage": ", ".join(f"{stage} {value:.2f}" for stage, value in summary.seconds.items()),
    }
    if summary.pipeline_share is not None:
        rows["inside the pipeline"] = f"{summary.pipeline_share:.1%} of the wall time"
    if summary.peak_memory_bytes:
        rows["peak memory"] = f"{summary.peak_memory_bytes / 2**30:.2f} GiB a rank"
    if len(summary.images_by_rank) > 1:
        rows["images by rank"] = _by_rank(summary.images_by_rank)
    if summary.usage:
        rows["usage"] = ", ".join(f"{name} {value:,.6g}" for name, value in summary.usage.items())
    return rows


def _by_rank(images: Mapping[str, int]) -> str:
    if len(images) > RANKS_TOLD:
        return f"{min(images.values()):,} to {max(images.values()):,} a rank, on {len(images):,} ranks"
    return ", ".join(f"{rank}: {count}" for rank, count in images.items())


def _in_a_line(text: str) -> str:
    """A text of others: what it says first."""
    line = " ".join(text.split())
    return line if len(line) <= ERROR_LENGTH else f"{line[:ERROR_LENGTH]} ..."


def _cost_rows(usage: Mapping[str, float], before: float) -> dict[str, str]:
    """What an API was paid, as far as its answers say it."""
    if "cost" not in usage and not before:
        return {}
    paid = usage.get("cost", 0.0)
    text = f"{money(paid)} in this start, {money(paid + before)} in all" if before else money(paid)
    if lost := usage.get("cost_of_lost_answers"):
        text += f"; up to {money(lost)} more for requests whose answers never came"
    return {"cost": text}


def number(count: int, noun: str) -> str:
    """1 image, 2 images, 1,000 batches."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}{'es' if noun.endswith('ch') else 's'}"


def duration(seconds: float) -> str:
    """12.3 s, 5 min, 2.5 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
