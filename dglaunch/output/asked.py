"""Which images a job has, finished or not: what run.json says of it, and how several of them add up.

run.json names the tasks as ranges of indices, `0:3,7,9:12x2` (0 to 2, 7, and two samples each of 9 to 11). So parts that
were made with --filter_rows, or from the parts of a table, are together what they were asked for together.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from dglaunch.data.many import ManyTasks
from dglaunch.data.task import Task
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import TaskId

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.integer[Any]]

MOST_TEXT = 1 << 21
"""Characters; with more (200,000 ids that are no row numbers) run.json names only the number of tasks."""
_RANGE = re.compile(r"(\d{1,19})(?::(\d{1,19}))?(?:x(\d{1,5}))?", re.ASCII)


class Range(NamedTuple):
    """Rows that follow one another and have as many samples each."""

    first: int
    stop: int
    samples: int


@dataclass(frozen=True, slots=True)
class TaskRanges:
    """The ids of tasks, in ranges that are in order and apart from one another."""

    ranges: tuple[Range, ...] = ()

    @classmethod
    def of(cls, task_ids: Iterable[TaskId]) -> Self:
        """Return the ids of whole rows: where there is sample 2, there are 0 and 1."""
        samples: dict[int, int] = {}
        for index, sample in task_ids:
            samples[index] = max(samples.get(index, 0), sample + 1)
        return cls(tuple(_joined(Range(index, index + 1, samples[index]) for index in sorted(samples))))

    @classmethod
    def of_tasks(cls, tasks: Sequence[Task]) -> Self:
        """Return the ids of tasks."""
        if isinstance(tasks, ManyTasks):
            return cls(tuple(Range(*found) for found in tasks.ranges()))
        return cls.of(task.id for task in tasks)

    @classmethod
    def parse(cls, text: object) -> Self | None:
        """Return what `text` said, or None: anyone may have written it."""
        if not isinstance(text, str) or len(text) > MOST_TEXT:
            return None
        found = [_RANGE.fullmatch(part) for part in text.split(",")]
        ranges = [_parsed(match) for match in found if match is not None]
        if len(ranges) < len(found) or not all(part.first < part.stop and part.samples for part in ranges):
            return None
        return cls(tuple(_united(ranges)))

    @property
    def text(self) -> str | None:
        """As run.json has it; None if that is too long."""
        text = ",".join(map(_text, self.ranges))
        return text if len(text) <= MOST_TEXT else None

    @property
    def count(self) -> int:
        return sum((stop - first) * samples for first, stop, samples in self.ranges)

    def __or__(self, other: "TaskRanges") -> "TaskRanges":
        return TaskRanges(tuple(_united([*self.ranges, *other.ranges])))

    def num_of(self, task_ids: Iterable[TaskId]) -> int:
        """Return how many of these ids are among them."""
        firsts = [part.first for part in self.ranges]
        return sum(self._has(firsts, *task_id) for task_id in task_ids)

    def num_in(self, index: "Ints", sample: "Ints") -> int:
        """Return the same of ids in two columns: ten million of them take a second."""
        import numpy as np

        if not self.ranges:
            return 0
        first, stop, samples = (np.array(part, dtype=np.uint64) for part in zip(*self.ranges))
        at = np.searchsorted(first, index.astype(np.uint64), "right") - 1
        return int(((at >= 0) & (index < stop[at]) & (sample < samples[at])).sum())

    def _has(self, firsts: list[int], index: int, sample: int) -> bool:
        at = bisect_right(firsts, index) - 1
        return at >= 0 and index < self.ranges[at].stop and sample < self.ranges[at].samples

    def names_without(self, present: Collection[TaskId]) -> Iterator[str]:
        """Yield the index, and the sample of a row with several, of each task that is not present."""
        for first, stop, samples in self.ranges:
            for index in range(first, stop):
                for sample in range(samples):
                    if (index, sample) not in present:
                        yield str(index) if samples == 1 else f"{index} sample {sample}"


def _parsed(match: re.Match[str]) -> Range:
    first, stop, samples = match.groups()
    return Range(int(first), int(first) + 1 if stop is None else int(stop), 1 if samples is None else int(samples))


def _text(part: Range) -> str:
    rows = str(part.first) if part.stop == part.first + 1 else f"{part.first}:{part.stop}"
    return rows if part.samples == 1 else f"{rows}x{part.samples}"


def _united(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges that may overlap, as such that do not; of a row that is in several the most samples count."""
    changes = sorted(
        change for part in ranges for change in ((part.first, 1, part.samples), (part.stop, -1, part.samples))
    )
    pieces: list[Range] = []
    open_now: Counter[int] = Counter()
    largest: list[int] = []
    """A heap of numbers of samples, negative; those that are not open any more are passed over."""
    before = 0
    for place, change, samples in changes:
        if open_now and place > before:
            while largest and not open_now[-largest[0]]:
                heappop(largest)
            if largest:
                pieces.append(Range(before, place, -largest[0]))
        open_now[samples] += change
        if change > 0:
            heappush(largest, -samples)
        before = place
    return _joined(pieces)


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """Ranges in order, those that follow one another as one."""
    last: Range | None = None
    for part in ranges:
        if last is not None and last.stop == part.first and last.samples == part.samples:
            last = Range(last.first, part.stop, part.samples)
            continue
        if last is not None:
            yield last
        last = part
    if last is not None:
        yield last


@dataclass(frozen=True, slots=True)
class Asked:
    """The images of a job."""

    named: TaskRanges
    num_unnamed: int = 0
    """Images beyond these, of which an older run.json says only that they are."""

    @property
    def total(self) -> int:
        return self.named.count + self.num_unnamed

    def num_missing(self, present: Iterable[TaskId]) -> int:
        return self.total - self.named.num_of(present)


def asked_of(folder: OutputFolder, known: Iterable[TaskId], node_rank: int | None = None) -> Asked:
    """Return which images the job of a folder has, as its run.json says, or all of them together.

    Args:
        folder: an output folder.
        known: what is there or has failed; it counts where a run.json does not name its tasks, or there is none.
        node_rank: of several nodes without a rendezvous, the one that is asked.
    """
    told = [TaskRanges.parse(run.get("tasks")) for run in folder.runs(node_rank).values()]
    named = TaskRanges()
    for ranges in told:
        named = named | ranges if ranges is not None else named
    if told and None not in told:
        return Asked(named)
    named = named | TaskRanges.of(known)
    return Asked(named, max(folder.num_tasks(node_rank=node_rank) - named.count, 0))


def together(parts: Iterable[Asked]) -> Asked:
    """Return the images of several parts of a job."""
    named, most = TaskRanges(), 0
    for part in parts:
        named, most = named | part.named, max(most, part.total)
    return Asked(named, max(most - named.count, 0))
