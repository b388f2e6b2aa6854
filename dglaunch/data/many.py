"""What a large table offers beside a list of tasks, so that nothing has to look at ten million of them one by one."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dglaunch.data.task import Task

if TYPE_CHECKING:
    from dglaunch.data.many_numbers import Numbers

AT_A_TIME = 4096


class Kinds(list[Task]):
    """The first task of each kind of a table, with the number of rows that are of it. Tasks of a kind differ in texts, seed
    and number alone, and in which images they begin from: not in how many there are and of what sizes."""

    def __init__(self, tasks: Iterable[Task] = (), num_rows: Iterable[int] = ()) -> None:
        super().__init__(tasks)
        self._num_rows = {task.id: count for task, count in zip(self, num_rows)}

    def rows_of(self, some: Iterable[Task]) -> int:
        """Return how many rows are of these kinds."""
        return sum(self._num_rows[task.id] for task in some)


class TaskIds(Collection[tuple[int, int]]):
    """Ids of tasks, in columns: ten million of them as tuples take a gigabyte.

    Args:
        index: of each.
        sample: of each.
    """

    def __init__(self, index: "Numbers", sample: "Numbers") -> None:
        self.index = index
        self.sample = sample

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in range(0, len(self), AT_A_TIME):
            some = slice(start, start + AT_A_TIME)
            yield from zip(self.index[some].tolist(), self.sample[some].tolist())

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._all

    @cached_property
    def _all(self) -> frozenset[tuple[int, int]]:
        return frozenset(self)


class ManyTasks(Sequence[Task]):
    """Tasks in columns (task_table.py): each is made when it is asked for."""

    @property
    @abstractmethod
    def kinds(self) -> Kinds:
        """The first task of each kind, in order."""

    @abstractmethod
    def by_kind(self, groups: Sequence[int]) -> Iterator[tuple[int, Self]]:
        """Yield the tasks in groups, in the order in which the first task of each stands.

        Args:
            groups: the group of each of `kinds`.
        """

    @property
    @abstractmethod
    def makeable(self) -> Self:
        """The tasks without an error."""

    @property
    @abstractmethod
    def unmakeable(self) -> Self:
        """The others."""

    @abstractmethod
    def input_files(self) -> Iterator[Path]:
        """Yield the files that are input images of the whole table."""

    @abstractmethod
    def find(self, task_id: tuple[int, int]) -> Task:
        """Return the task that has this id."""

    @abstractmethod
    def at(self, places: "Sequence[int] | Numbers") -> Self:
        """Return the tasks at these places."""

    @abstractmethod
    def followed_by(self, others: Sequence[Self]) -> Self:
        """Return these tasks, and behind them others of the same table."""

    @abstractmethod
    def without(self, task_ids: Collection[tuple[int, int]]) -> Self:
        """Return the tasks that have none of these ids."""

    @abstractmethod
    def places_of(self, task_ids: Collection[tuple[int, int]]) -> list[int]:
        """Return where the tasks stand that have these ids."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Yield all prompts and negative prompts."""

    @abstractmethod
    def ids(self) -> "TaskIds":
        """Return the ids of the tasks."""

    @abstractmethod
    def maybe_called(self, stems: Collection[str]) -> Self:
        """Return some tasks, among which are all whose file is called so: its name without folder and suffix."""

    @abstractmethod
    def placed(self, place: Callable[[int, str], str]) -> Self:
        """Return the tasks with other names.

        Args:
            place: makes the name of a file, without its suffix, of the task's index and the name that it had.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a hash of all that the tasks are: equal only where each of them is."""

    @abstractmethod
    def ranges(self) -> Iterator[tuple[int, int, int]]:
        """Yield the indices in order: the first of some that follow one another, the one behind the last, and the number of
        their samples."""

    @property
    @abstractmethod
    def indices(self) -> "Numbers":
        """The index of each task."""

    @abstractmethod
    def digests(self) -> "Numbers":
        """Return a number for each task that follows from its prompt, its seed and its input images: equal where they are."""

    @property
    @abstractmethod
    def sample_counts(self) -> set[int]:
        """How many images rows have, each number once."""


def texts_of(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield all prompts, as the model gets them, and negative prompts."""
    if isinstance(tasks, ManyTasks):
        yield from tasks.texts()
    else:
        both = (text for task in tasks for text in (task.text, task.negative_prompt))
        yield from (text for text in both if text is not None)


def finder(tasks: Sequence[Task]) -> Callable[[tuple[int, int]], Task]:
    """Return what finds one of these tasks by its id."""
    return tasks.find if isinstance(tasks, ManyTasks) else {task.id: task for task in tasks}.__getitem__


def input_files(tasks: Sequence[Task]) -> Iterator[Path]:
    """Yield the files that are input images of tasks."""
    if isinstance(tasks, ManyTasks):
        yield from tasks.input_files()
    else:
        yield from {image.source for task in tasks for image in task.inputs if isinstance(image.source, Path)}


def kinds_of(tasks: Sequence[Task]) -> Sequence[Task]:
    """Return tasks among which is each setting that any of them has: all of them, or one of each kind."""
    return tasks.kinds if isinstance(tasks, ManyTasks) else tasks


def num_rows(some: Sequence[Task], every: Sequence[Task]) -> int:
    """Return how many rows some of these tasks are of.

    Args:
        every: what `kinds_of` returned, of which they are some.
    """
    return every.rows_of(some) if isinstance(every, Kinds) else len({task.index for task in some})


def without(tasks: Sequence[Task], task_ids: Collection[tuple[int, int]]) -> Sequence[Task]:
    """Return the tasks that have none of these ids."""
    if not task_ids:
        return tasks
    if isinstance(tasks, ManyTasks):
        return tasks.without(task_ids)
    return [task for task in tasks if task.id not in task_ids]


def sample_counts(tasks: Sequence[Task]) -> set[int]:
    """Return how many images rows have, each number once."""
    return tasks.sample_counts if isinstance(tasks, ManyTasks) else set(Counter(task.index for task in tasks).values())


def ids_at(tasks: Sequence[Task], places: "Numbers") -> Collection[tuple[int, int]]:
    """Return the ids of the tasks that stand at these places."""
    if isinstance(tasks, ManyTasks):
        return tasks.at(places).ids()
    return frozenset(tasks[place].id for place in places.tolist())


def ids_among(tasks: Sequence[Task], task_ids: Collection[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return which of some ids, which are few, tasks have."""
    if isinstance(tasks, ManyTasks):
        return set(tasks.at(tasks.places_of(task_ids)).ids()) if task_ids else set()
    return {task.id for task in tasks if task.id in task_ids}


def places_of(tasks: Sequence[Task], task_ids: Collection[tuple[int, int]]) -> list[int]:
    """Return where the tasks stand that have these ids."""
    if isinstance(tasks, ManyTasks):
        return tasks.places_of(task_ids) if task_ids else []
    return [place for place, task in enumerate(tasks) if task.id in task_ids]
