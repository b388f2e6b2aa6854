"""--shuffle_seed: each row draws a lot, which follows from this number and the row's index and from nothing else.

    sample = Sample(seed=7, size=100)
    sample.takes(17)                    # whether row 17 may be among the 100 with the least lots, as far as rows came by
    sample.has(17)                      # at the end: whether it is
    shuffled(tasks, seed=7)             # tasks in the order of their rows' lots

So a sample of a table is part of every larger sample of it, rows that are added change little, and index, seed and name of
an image stay what they are.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

from dglaunch.data.many import ManyTasks
from dglaunch.data.many_numbers import Numbers
from dglaunch.data.task import Task

Lots = np.ndarray[Any, np.dtype[np.uint64]]
STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of splitmix64, which is the same everywhere."""


def lots_of(indices: Numbers, seed: int) -> Lots:
    """Return the lot of each row."""
    start = _mixed(np.array([seed + 1], np.uint64) * np.uint64(STEP))
    return _mixed(start + (indices.astype(np.uint64) + np.uint64(1)) * np.uint64(STEP))


def _mixed(numbers: Lots) -> Lots:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(FIRST)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(SECOND)
    return numbers ^ (numbers >> np.uint64(31))


class Sample:
    """The rows that have the least lots, while rows come by."""

    def __init__(self, seed: int, size: int) -> None:
        self._seed = seed
        self._size = size
        self._worst_first: list[tuple[int, int]] = []
        """Of the rows that are taken: the lot, negative, and the index."""

    def takes(self, index: int) -> bool:
        """Take a row, if no sample is full of others before it; the last one may have to go then."""
        return bool(self.taken(np.array([index]))[0])

    def taken(self, indices: Numbers) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Take of these rows those that may be among the sample; one that is taken may have to go later."""
        lots = lots_of(indices, self._seed)
        if len(self._worst_first) == self._size:
            may_be = lots < np.uint64(-self._worst_first[0][0])
        else:
            may_be = np.ones(len(lots), bool)
        first = np.flatnonzero(may_be)
        first = first[np.argsort(lots[first], kind="stable")][: self._size]
        for at in first.tolist():
            lot = -int(lots[at]), int(indices[at])
            if len(self._worst_first) < self._size:
                heapq.heappush(self._worst_first, lot)
            else:
                heapq.heappushpop(self._worst_first, lot)
        found = np.zeros(len(lots), bool)
        found[first] = True
        return found

    @property
    def indices(self) -> set[int]:
        """The rows that are taken and have not gone."""
        return {index for _, index in self._worst_first}


def shuffled(tasks: Sequence[Task], seed: int, num_points: int) -> Sequence[Task]:
    """Return tasks in the order of their rows' lots; those of one row stay together.

    Args:
        num_points: how many images --grid makes of one, each with an index of its own.
    """
    if isinstance(tasks, ManyTasks):
        return tasks.at(_order(tasks.indices, seed, num_points))
    indices = np.fromiter((task.index for task in tasks), np.int64, len(tasks))
    return [tasks[at] for at in _order(indices, seed, num_points).tolist()]


def is_sampled(indices: Numbers, seed: int, size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return of each row, which may come several times, whether it is among those that have the least lots."""
    lots = lots_of(indices, seed)
    return np.asarray(lots <= np.unique(lots)[:size][-1], bool)


def _order(indices: Numbers, seed: int, num_points: int) -> Numbers:
    return np.argsort(lots_of(indices // num_points, seed), kind="stable")
