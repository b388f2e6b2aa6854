"""Images that a job would make twice: with the same prompt, the same seed and the same settings as another of its images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dglaunch.data.many import ManyTasks
from dglaunch.data.task import Task


@dataclass(frozen=True, slots=True)
class Duplicates:
    """How many there are, and the first of them."""

    count: int
    """Images beyond the first of their kind."""
    first: Task
    again: Task
    """The first of these images that is as one before it, and that one."""

    def __str__(self) -> str:
        images = "images are" if self.count > 1 else "image is"
        return (
            f"{self.count:,} {images} asked for again: the same prompt, seed and settings as another row has (the first: row "
            f"{self.again.index}, as row {self.first.index}). Give them seeds of their own, or take them out."
        )


def duplicates_in(tasks: Sequence[Task]) -> Duplicates | None:
    """Return which images are asked for more than once; None: none is."""
    seen: dict[str, Task] = {}
    count, pair = 0, None
    for task in _suspects(tasks):
        first = seen.setdefault(repr(task.content()), task)
        if first is not task:
            count += 1
            pair = pair or (first, task)
    return None if pair is None else Duplicates(count, *pair)


def _suspects(tasks: Sequence[Task]) -> Iterator[Task]:
    """Those that may be duplicates of one another, in their order: of a large table those whose prompt and seed another has."""
    if not isinstance(tasks, ManyTasks):
        yield from tasks
        return
    import numpy as np  # a tenth of a second, which is much of a short answer

    digests = tasks.digests()
    order = np.argsort(digests, kind="stable")
    same = digests[order][1:] == digests[order][:-1]
    is_shared = np.zeros(len(tasks), bool)
    is_shared[order[1:][same]] = True
    is_shared[order[:-1][same]] = True
    yield from tasks.at(np.flatnonzero(is_shared))
