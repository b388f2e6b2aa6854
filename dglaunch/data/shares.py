"""What a replica computes: tasks of some buckets, one bucket after the other, each cut into balanced batches."""

import itertools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from dglaunch.data.many import kinds_of
from dglaunch.data.task import Batch, Bucket, Task

MADE_AT_ONCE = 64
"""Batches."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tasks of one bucket that stand in one share, and into how large batches they are cut."""

    bucket: Bucket
    tasks: Sequence[Task]
    size: int
    """The largest batch."""
    cost: float
    """Of one image, in the unit of `build`."""

    @property
    def num_batches(self) -> int:
        return math.ceil(len(self.tasks) / self.size)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """How many batches there are of which length, in their order."""
        least, longer = divmod(len(self.tasks), self.num_batches)
        return [(length, count) for length, count in ((least + 1, longer), (least, self.num_batches - longer)) if count]

    def batches(self, first: int, stop: int) -> list[Batch]:
        """Make those of its batches, whose tasks are made at once: rows drawn from all over a table of millions cost 0.2 ms each
        otherwise, and encoding threads take over between them."""
        least, longer = divmod(len(self.tasks), max(self.num_batches, 1))
        edges = [least * number + min(number, longer) for number in range(first, stop + 1)]
        tasks = tuple(self.tasks[edges[0] : edges[-1]])
        return [Batch(tasks[start - edges[0] : end - edges[0]]) for start, end in itertools.pairwise(edges)]


class Share(Sequence[Batch]):
    """The batches of one replica; some are made when one is asked for."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._firsts = [0, *itertools.accumulate(part.num_batches for part in parts)]
        self._made: tuple[tuple[int, int], list[Batch]] = (-1, -1), []
        """Which part, and which MADE_AT_ONCE of its batches; threads replace it as a whole."""

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, which: int) -> Batch: ...
    @overload
    def __getitem__(self, which: slice) -> list[Batch]: ...
    def __getitem__(self, which: int | slice) -> Batch | list[Batch]:
        if isinstance(which, slice):
            return [self[number] for number in range(*which.indices(len(self)))]
        number = range(len(self))[which]
        at = bisect_right(self._firsts, number) - 1
        window, place = divmod(number - self._firsts[at], MADE_AT_ONCE)
        made = self._made
        if made[0] != (at, window):
            first, part = window * MADE_AT_ONCE, self.parts[at]
            made = (at, window), part.batches(first, min(first + MADE_AT_ONCE, part.num_batches))
            self._made = made
        return made[1][place]

    @property
    def num_images(self) -> int:
        return sum(len(part.tasks) for part in self.parts)

    @property
    def lengths(self) -> Counter[int]:
        """How many batches there are of which length."""
        found: Counter[int] = Counter()
        for part in self.parts:
            found.update(dict(part.lengths))
        return found

    @property
    def costs(self) -> Iterator[float]:
        """What each of its batches costs, in their order."""
        for part in self.parts:
            for length, count in part.lengths:
                yield from itertools.repeat(length * part.cost, count)


def settings_of(batches: Sequence[Batch]) -> list[Task]:
    """Return tasks among which is each setting that any task of these batches has."""
    if isinstance(batches, Share):
        return [task for part in batches.parts for task in kinds_of(part.tasks)]
    return [task for batch in batches for task in batch.tasks]
