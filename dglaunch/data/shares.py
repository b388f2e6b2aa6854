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

    def batch(self, number: int) -> Batch:
        """Make one of its batches."""
        least, longer = divmod(len(self.tasks), self.num_batches)
        start, stop = (least * n + min(n, longer) for n in (number, number + 1))
        return Batch(tuple(self.tasks[start:stop]))


class Share(Sequence[Batch]):
    """The batches of one replica; each is made when it is asked for."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._firsts = [0, *itertools.accumulate(part.num_batches for part in parts)]

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
        return self.parts[at].batch(number - self._firsts[at])

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
