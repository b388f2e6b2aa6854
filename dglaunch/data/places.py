"""Where tasks stand among those of a job, and how ranks tell one another of many such places."""

from collections.abc import Collection, Sequence

import numpy as np

from dglaunch.data.many import ManyTasks
from dglaunch.data.many_numbers import Numbers
from dglaunch.data.task import Task


def places_of(tasks: Sequence[Task], task_ids: Collection[tuple[int, int]]) -> Numbers:
    """Return where the tasks stand that have these ids."""
    if not task_ids:
        return np.zeros(0, np.int64)
    if isinstance(tasks, ManyTasks):
        return tasks.places_of(task_ids)
    return np.array([place for place, task in enumerate(tasks) if task.id in task_ids], np.int64)


def runs_of(numbers: Numbers) -> list[int]:
    """Return numbers that are in order in short: the first of each run of them and the one behind its last."""
    if not len(numbers):
        return []
    edges = np.flatnonzero(np.diff(numbers) != 1)
    firsts = numbers[np.concatenate([[0], edges + 1])]
    stops = numbers[np.concatenate([edges, [len(numbers) - 1]])] + 1
    return np.stack([firsts, stops], axis=1).ravel().tolist()


def numbers_in(runs: Sequence[int]) -> Numbers:
    """Return the numbers that `runs_of` has put in short."""
    pairs = np.array(runs, np.int64).reshape(-1, 2)
    lengths = pairs[:, 1] - pairs[:, 0]
    before = np.cumsum(lengths) - lengths
    return np.asarray(np.arange(int(lengths.sum())) + np.repeat(pairs[:, 0] - before, lengths))
