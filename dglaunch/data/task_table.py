"""The tasks of a large table, in columns: a Task is made when somebody asks for it.

    tasks = TaskTable.open(path, defaults, loras.of_row)     # maps what TaskFile wrote: the ranks of a node share its pages
    len(tasks), tasks[17], tasks[100:200], for task in tasks: ...
    tasks.kinds                                         # one task of each kind: all that a setting can be wrong about

It is a Sequence of tasks like any list of them. What looks at ten million tasks goes by their kinds, or by the columns.
"""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dglaunch import strict_json
from dglaunch.data import input_columns
from dglaunch.data.input_columns import AS_IN_TASK, FIELDS, SHAPES, ImageTable
from dglaunch.data.many import Kinds, ManyTasks, TaskIds
from dglaunch.data.many_numbers import Numbers
from dglaunch.data.task import LORA, Record, Task
from dglaunch.models.input_roles import ROLES
from dglaunch.models.lora import LoraUse, text_of

_INDEX = re.compile(r"\d{1,19}", re.ASCII)
SPREAD = 0x1E3779B97F4A7C15
"""By which seeds that follow one another become numbers far apart."""
LEAST_WRITTEN = 4096
"""Tasks of a record batch: a table with images in it is read a few rows at a time, and each batch costs a kilobyte of memory."""
MADE_AT_ONCE = 4096
"""Tasks that an iteration makes ahead."""
EXTRA = "extra:"
"""Before the name of a column that is carried into the ledger."""
REST = "extra"
"""All such columns of a row as JSON, where they have no column of their own."""
NEEDED: Mapping[str, pa.DataType] = {"index": pa.int64(), "prompt": pa.string(), "seed": pa.int64()}
SETTINGS: Mapping[str, pa.DataType] = {
    "negative_prompt": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "num_inference_steps": pa.int32(),
    "guidance_scale": pa.float64(),
    LORA: pa.string(),
}
"""Nothing there: as the flags say. A column that no row sets is not in the file."""
OTHERS: Mapping[str, pa.DataType] = {"sample": pa.int32(), "stem": pa.string(), REST: pa.string()}
"""sample: nothing there, if it is the only one of its row. stem: nothing there, if it follows from index and sample."""


OF_KIND = ("strength", "control_scale", "input_tokens", SHAPES)
"""What of the columns of input images tasks of one kind have alike."""


def schema_of(
    settings: Sequence[str], others: Sequence[str], extras: Sequence[pa.Field] = (), *, has_inputs: bool = False
) -> pa.Schema:
    """Return the columns of a file: what each task has, and of the rest what some row of this table may have."""
    fields = [
        *NEEDED.items(),
        *((name, SETTINGS[name]) for name in settings),
        *((name, OTHERS[name]) for name in others),
        *(FIELDS.items() if has_inputs else ()),
    ]
    return pa.schema([*fields, *(field.with_name(f"{EXTRA}{field.name}").with_nullable(True) for field in extras)])


class TaskFile:
    """A file of tasks that is being written."""

    def __init__(self, path: str, schema: pa.Schema) -> None:
        self.schema = schema
        self.num_tasks = 0
        self._file = pa.OSFile(path, "wb")
        self._writer = pa.ipc.new_file(self._file, schema)
        self._waiting: list[pa.RecordBatch] = []
        self._num_waiting = 0

    def add(self, tasks: pa.RecordBatch) -> None:
        """Add tasks behind those that are there.

        Raises:
            OSError: the disk is full.
        """
        self.num_tasks += tasks.num_rows
        self._num_waiting += tasks.num_rows
        self._waiting.append(tasks)
        if self._num_waiting >= LEAST_WRITTEN:
            self._write()

    def _write(self) -> None:
        if self._num_waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting).combine_chunks())
        self._waiting, self._num_waiting = [], 0

    def close(self) -> None:
        """Finish the file."""
        self._write()
        self._writer.close()
        self._file.close()


def packed(
    tasks: Sequence[Task],
    schema: pa.Schema,
    defaults: Mapping[str, object],
    given: Mapping[str, list[object]] = MappingProxyType({}),
) -> pa.RecordBatch:
    """Return tasks as a batch of such a file.

    Args:
        given: columns that do not follow from the tasks alone.
    """
    columns: dict[str, list[object]] = {name: [] for name in schema.names if name not in given}
    for task in tasks:
        for name, values in columns.items():
            values.append(_packed(task, name, defaults))
    arrays = [pa.array((given if field.name in given else columns)[field.name], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _packed(task: Task, name: str, defaults: Mapping[str, object]) -> object:
    """What a column of the file has of a task."""
    if name == LORA:
        return None if task.lora == defaults[LORA] else text_of(task.lora or ())
    if name in SETTINGS:
        value = getattr(task, name)
        return None if value == defaults[name] else value
    if name == REST:
        return None if task.extra is None else strict_json.dumps(task.extra, compact=True)
    if name == "sample":
        return task.sample if task.stem != f"{task.index:06d}" else None
    if name == "stem":
        return None if task.stem in (f"{task.index:06d}", f"{task.index:06d}_{task.sample:02d}") else task.stem
    if name in AS_IN_TASK:
        return input_columns.packed(task, name)
    return None if name.startswith(EXTRA) or name in FIELDS else getattr(task, name)


@dataclass(slots=True)
class _Store:
    """The columns of all tasks of a table, as the file has them, and what stands where nothing is in them."""

    schema: pa.Schema
    batches: list[pa.RecordBatch]
    starts: Numbers
    """The number of each batch's first task, and how many tasks there are."""
    defaults: Mapping[str, object]
    lora_of: Callable[[str], tuple[LoraUse, ...]]
    images: ImageTable | None = None
    """What is known of the input images; None: there are none, or nothing is known yet."""
    place: Callable[[int, str], str] | None = None
    """What makes the name of a file of the index and the name that it has else."""

    @property
    def names(self) -> list[str]:
        return list(self.schema.names)

    def column(self, name: str) -> pa.ChunkedArray | None:
        if name not in self.names:
            return None
        return pa.chunked_array([batch.column(name) for batch in self.batches])

    def make(self, numbers: "Numbers | range") -> Iterator[Task]:
        """Yield the tasks of these numbers."""
        if isinstance(numbers, range):
            for batch, low, high in self._stretches(numbers):
                yield from self.make_of(batch.slice(low, high - low))
            return
        places = np.searchsorted(self.starts, numbers, side="right") - 1
        order = np.argsort(places, kind="stable")  # rows that stand together are read together
        made: dict[int, Task] = {}
        for some in np.split(order, np.flatnonzero(np.diff(places[order])) + 1) if len(order) else ():
            at = int(places[some[0]])
            found = self.make_of(self.batches[at].take(pa.array(numbers[some] - self.starts[at])))
            made.update(zip(some.tolist(), found))
        yield from map(made.__getitem__, range(len(made)))

    def _stretches(self, numbers: range) -> Iterator[tuple[pa.RecordBatch, int, int]]:
        start = numbers.start
        while start < numbers.stop:
            at = int(np.searchsorted(self.starts, start, side="right")) - 1
            stop = min(numbers.stop, int(self.starts[at + 1]))
            yield self.batches[at], start - int(self.starts[at]), stop - int(self.starts[at])
            start = stop

    def make_of(self, batch: pa.RecordBatch) -> Iterator[Task]:
        """Yield the tasks of a batch of rows of the file."""
        columns = {name: column.to_pylist() for name, column in zip(batch.schema.names, batch.columns)}
        extras = {name.removeprefix(EXTRA): values for name, values in columns.items() if name.startswith(EXTRA)}
        nothing = [None] * batch.num_rows
        samples, stems, rests = (columns.get(name, nothing) for name in ("sample", "stem", REST))
        settings = {name: self._settings(name, columns.get(name)) for name in SETTINGS}
        varied = {name: values for name, values in settings.items() if isinstance(values, list)}
        fixed: dict[str, Any] = {name: values for name, values in settings.items() if name not in varied}
        inputs = input_columns.inputs_of_tasks(columns, self.images) if SHAPES in columns else [{}] * batch.num_rows
        for n, (index, prompt, seed) in enumerate(zip(columns["index"], columns["prompt"], columns["seed"])):
            sample, stem = samples[n], stems[n]
            if stem is None:
                stem = f"{index:06d}" if sample is None else f"{index:06d}_{sample:02d}"
            if self.place is not None:
                stem = self.place(index, stem)
            yield Task(
                index=index, sample=sample or 0, prompt=prompt, seed=seed, stem=stem, extra=_extra(extras, rests[n], n),
                **fixed, **{name: values[n] for name, values in varied.items()}, **inputs[n],
            )  # fmt: skip

    def _settings(self, name: str, values: list[Any] | None) -> object:
        """What each task of a batch has of a setting; the default itself, where no task of the table sets it."""
        default = self.defaults[name]
        if values is None:
            return default
        if name == LORA:
            return [default if value is None else self.lora_of(value) for value in values]
        return [default if value is None else value for value in values]


def _extra(extras: Mapping[str, list[object]], rest: object, number: int) -> Record | None:
    if isinstance(rest, str):
        found = strict_json.loads(rest)
        assert isinstance(found, dict)
        return found
    kept = {name: values[number] for name, values in extras.items() if values[number] is not None}
    return kept or None


class TaskTable(ManyTasks):
    """Tasks of a file that TaskFile wrote: all of them, or some in their order."""

    def __init__(self, store: _Store, numbers: "Numbers | range") -> None:
        """
        Args:
            numbers: of the tasks in the file, that these are.
        """
        self._store = store
        self._numbers = numbers

    @classmethod
    def open(
        cls,
        path: str,
        defaults: Mapping[str, object],
        lora_of: Callable[[str], tuple[LoraUse, ...]],
        images: ImageTable | None = None,
    ) -> Self:
        """Map a file.

        Args:
            defaults: of all that a row may set, what it has if it does not.
            lora_of: what a text that names LoRAs means.
            images: the input images whose numbers stand there.
        """
        file = pa.ipc.open_file(pa.memory_map(path))
        batches = [file.get_batch(number) for number in range(file.num_record_batches)]
        starts = np.cumsum([0, *(batch.num_rows for batch in batches)], dtype=np.int64)
        store = _Store(file.schema, batches, starts, defaults, lru_cache(maxsize=None)(lora_of), images)
        return cls(store, range(int(starts[-1])))

    # -- a sequence ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, which: int) -> Task: ...
    @overload
    def __getitem__(self, which: slice) -> Self: ...
    def __getitem__(self, which: int | slice) -> Task | Self:
        if isinstance(which, slice):
            return self._some(self._numbers[which])
        number = int(self._numbers[which])
        return next(self._store.make(range(number, number + 1)))

    def __iter__(self) -> Iterator[Task]:
        for start in range(0, len(self), MADE_AT_ONCE):
            yield from self._store.make(self._numbers[start : start + MADE_AT_ONCE])

    def _some(self, numbers: "Numbers | range") -> Self:
        if isinstance(numbers, range) and numbers.step != 1:
            numbers = np.arange(numbers.start, numbers.stop, numbers.step)
        return type(self)(self._store, numbers)

    def at(self, places: Sequence[int] | Numbers) -> Self:
        found, numbers = np.asarray(places, np.int64), self._numbers
        if len(found) and bool((np.diff(found) == 1).all()):
            return self[int(found[0]) : int(found[-1]) + 1]
        return self._some(found + numbers.start if isinstance(numbers, range) else numbers[found])

    def followed_by(self, others: Sequence[Self]) -> Self:
        if not others:
            return self
        numbers = np.concatenate([np.asarray(some._numbers, np.int64) for some in (self, *others)])
        return self._some(numbers)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the file."""
        return self._store.schema

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Yield the columns of these tasks, some at a time. They stand in the order of the file."""
        numbers = np.asarray(self._numbers, np.int64)
        edges = np.searchsorted(numbers, self._store.starts)
        for batch, first, start, stop in zip(self._store.batches, self._store.starts, edges, edges[1:]):
            for low in range(start, stop, MADE_AT_ONCE):
                yield batch.take(pa.array(numbers[low : min(low + MADE_AT_ONCE, stop)] - first))

    def tasks_of(self, piece: pa.RecordBatch) -> list[Task]:
        """Return the tasks of such columns."""
        return [*self._store.make_of(piece)]

    # -- ids ----------------------------------------------------------------------------------------------------------

    def column(self, name: str) -> pa.ChunkedArray | None:
        """Return what the rows themselves say of something, for each task; None: the table says nothing of it."""
        found, numbers = self._store.column(name), self._numbers
        if found is None or len(numbers) == len(found):
            return found
        if isinstance(numbers, range):
            return found.slice(numbers.start, len(numbers))
        return found.take(pa.array(numbers))

    @property
    def indices(self) -> Numbers:
        found = self.column("index")
        assert found is not None
        return found.to_numpy()  # type: ignore[no-any-return]

    @property
    def _samples(self) -> "Numbers | None":
        """The sample of each task; None: each is the only one of its row."""
        found = self.column("sample")
        return None if found is None else pc.fill_null(found, 0).to_numpy()

    def ids(self) -> TaskIds:
        index, samples = self.indices, self._samples
        return TaskIds(index, np.zeros(len(index), np.int32) if samples is None else samples)

    def maybe_called(self, stems: Collection[str]) -> Self:
        names = {stem.rpartition("/")[2] for stem in stems}
        numbers = [int(found[0]) for name in names if (found := _INDEX.match(name)) is not None]
        may_be = np.isin(self.indices, np.array([number for number in numbers if number < 2**63], np.int64))
        if (named := self.column("stem")) is not None:
            may_be |= pc.is_in(named, pa.array(sorted(names), pa.string())).to_numpy()
        return self.at(np.flatnonzero(may_be))

    def placed(self, place: Callable[[int, str], str]) -> Self:
        return type(self)(replace(self._store, place=place), self._numbers)

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(sorted(self._store.defaults.items())).encode("utf-8", "surrogatepass"))
        if self._store.place is not None:
            digest.update(self._store.place(12_345_678, "").encode())
        numbers = self._numbers
        digest.update(repr(numbers).encode() if isinstance(numbers, range) else np.ascontiguousarray(numbers).data)
        images = self._store.images
        for batch in (*self._store.batches, *(() if images is None else images.batches)):
            digest.update(batch.serialize())
        return digest.hexdigest()

    def _has(self, task_ids: Collection[tuple[int, int]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of each task whether it has one of these ids."""
        if isinstance(task_ids, TaskIds):
            some = np.stack([task_ids.index, task_ids.sample], axis=1)
        else:
            some = np.fromiter(chain.from_iterable(task_ids), np.int64, 2 * len(task_ids)).reshape(-1, 2)
        index, samples = self.indices, self._samples
        if samples is None:
            return np.isin(index, some[some[:, 1] == 0, 0])
        room = max(int(samples.max(initial=0)), int(some[:, 1].max(initial=0))) + 1
        return np.isin(index * room + samples, some[:, 0] * room + some[:, 1])

    def without(self, task_ids: Collection[tuple[int, int]]) -> Self:
        return self.at(np.flatnonzero(~self._has(task_ids))) if task_ids else self

    def places_of(self, task_ids: Collection[tuple[int, int]]) -> list[int]:
        return np.flatnonzero(self._has(task_ids)).tolist()

    @cached_property
    def _by_index(self) -> tuple[Numbers, Numbers]:
        """The indices in order, and the places of their tasks."""
        index = self.indices
        places = np.argsort(index, kind="stable")
        return index[places], places

    def find(self, task_id: tuple[int, int]) -> Task:
        index, places = self._by_index
        first, stop = (int(np.searchsorted(index, task_id[0], side)) for side in ("left", "right"))
        return next(task for task in self.at(places[first:stop]) if task.id == task_id)

    def texts(self) -> Iterator[str]:
        if (default := self._store.defaults["negative_prompt"]) is not None:
            yield str(default)
        for name in ("prompt", "negative_prompt"):
            column = self.column(name)
            for chunk in () if column is None else column.chunks:
                yield from chunk.drop_null().to_pylist()

    def ranges(self) -> Iterator[tuple[int, int, int]]:
        rows, found = np.unique(self.indices, return_counts=True)
        counts: Numbers = found
        if (samples := self._samples) is not None:  # where there is sample 2, there are 0 and 1
            order = np.lexsort((samples, self.indices))
            counts = samples[order][np.cumsum(found) - 1] + 1
        edges = np.flatnonzero((np.diff(rows) != 1) | (np.diff(counts) != 0)) + 1
        for start, stop in pairwise([0, *edges.tolist(), len(rows)]):
            yield int(rows[start]), int(rows[stop - 1]) + 1, int(counts[start])

    def digests(self) -> Numbers:
        prompts, seeds = self.column("prompt"), self.column("seed")
        assert prompts is not None
        assert seeds is not None
        found = [np.fromiter(map(hash, chunk.to_pylist()), np.int64, len(chunk)) for chunk in prompts.chunks]
        digests: Numbers = np.concatenate(found) ^ (seeds.to_numpy() * np.int64(SPREAD))
        if (images := self._store.images) is not None:
            columns = [column for role in ROLES if (column := self.column(role)) is not None]
            digests = digests ^ input_columns.digests_of_inputs(columns, images)
        return digests

    def input_files(self) -> Iterator[Path]:
        if self._store.images is not None:
            yield from self._store.images.files()

    @property
    def sample_counts(self) -> set[int]:
        samples = self._samples
        return {1} if samples is None else set(np.unique(np.unique(self.indices, return_counts=True)[1]).tolist())

    # -- errors -------------------------------------------------------------------------------------------------------

    @cached_property
    def makeable(self) -> Self:
        errors = self.column("error")
        if errors is None or errors.null_count == len(errors):
            return self
        return self.at(np.flatnonzero(errors.is_null().to_numpy()))

    @cached_property
    def unmakeable(self) -> Self:
        errors = self.column("error")
        return self[:0] if errors is None else self.at(np.flatnonzero(errors.is_valid().to_numpy()))

    # -- kinds --------------------------------------------------------------------------------------------------------

    @cached_property
    def _codes(self) -> "tuple[Numbers | None, Numbers]":
        """The kind of each task (None: all are of one), and the place of the first task of each kind, in order."""
        codes: Numbers | None = None
        for name in (*SETTINGS, *OF_KIND):
            column = self.column(name)
            if column is None or column.null_count == len(column):
                continue
            found = _classes(column) if name == "negative_prompt" else _numbered(column)
            codes = _joined(codes, found)
        if codes is None:
            return None, np.zeros(1, np.int64)
        _, firsts = np.unique(codes, return_index=True)
        order = np.argsort(firsts)
        ranks = np.empty(len(order), np.int32)
        ranks[order] = np.arange(len(order), dtype=np.int32)
        return ranks[codes], firsts[order]

    @cached_property
    def kinds(self) -> Kinds:
        codes, firsts = self._codes
        if not len(self):
            return Kinds()
        is_first = np.diff(self.indices, prepend=-1) != 0  # of its row: its samples follow one another
        counts = [np.count_nonzero(is_first)] if codes is None else np.bincount(codes[is_first], minlength=len(firsts))
        return Kinds((self[int(first)] for first in firsts), map(int, counts))

    def by_kind(self, groups: Sequence[int]) -> Iterator[tuple[int, Self]]:
        codes, _ = self._codes
        if codes is None or len(set(groups)) == 1:
            yield groups[0], self
            return
        group_of = np.array(groups, np.int32)[codes]
        for group in dict.fromkeys(groups):
            yield group, self.at(np.flatnonzero(group_of == group))


def _joined(codes: Numbers | None, others: Numbers) -> Numbers:
    """A number for each pair of two numbers."""
    both = others if codes is None else codes * (int(others.max()) + 1) + others
    found: Numbers = np.unique(both, return_inverse=True)[1]
    return found


def _classes(column: pa.ChunkedArray) -> Numbers:
    """Of negative prompts: as the flags say, blank, or a text."""
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
    return pc.fill_null(pc.if_else(blank, 1, 2), 0).to_numpy().astype(np.int32)  # type: ignore[no-any-return]


def _numbered(column: pa.ChunkedArray) -> Numbers:
    """A number for each value of a column, 0 where there is none."""
    found = pc.dictionary_encode(column).combine_chunks()
    indices = (
        found.indices if isinstance(found, pa.DictionaryArray) else pa.concat_arrays(c.indices for c in found.chunks)
    )
    return pc.add(pc.fill_null(indices, -1), 1).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
