"""All that the ledgers of a folder say of its images, as columns: what resume, status, verify, merge and the pages read.

Of several lines about one image the last one counts: in the order of `OutputFolder.ledgers`, and within a file in that of its
lines. The lines themselves are read only where somebody asks for what else they say.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from dglaunch.data.many import ManyTasks
from dglaunch.data.task import Record, Task
from dglaunch.files import open_regular
from dglaunch.output import ownership, segments
from dglaunch.output.asked import TaskRanges
from dglaunch.output.file_index import AT_TOP, IN_SHARD, KINDS, Columns, FileIndex, Ints, kept_at, read_all
from dglaunch.output.images import is_as_its_line_says, written_at
from dglaunch.output.ledger import METADATA, OutputFolder
from dglaunch.output.lines import IMAGE_SUFFIXES, LedgerFile, TaskId, id_of, record_at, text_at
from dglaunch.output.looks import Bools, Floats, Looks, Place
from dglaunch.output.segments import FOLDER
from dglaunch.output.shards import Shards, store_of

PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".jpeg")
_NO_ROWS = np.empty(0, np.int64)
AT_A_TIME = 4096
"""Lines that are read together."""
NAMES_OF_FILES = 64
"""Ledgers whose names are held at a time."""
FILES_AT_A_TIME = 200
"""Ledgers that are open at a time."""
JOINED = 100
"""Ledgers whose columns are joined while others are read. Of columns as small as those of one, the memory does not go back to the
system: of ten million rows 0.4 GB."""


class LedgerIndex:
    """A LedgerIndex holds the rows of all ledgers of a folder, and which of them are the last of their image.

    Args:
        folder: the output folder.
        files: the columns of each ledger, in the order in which they count.
    """

    def __init__(self, folder: OutputFolder, files: Iterable[FileIndex]) -> None:
        self.folder = folder
        self.files: list[FileIndex] = []
        counts: list[int] = []
        parts: list[Columns] = []
        coming = iter(files)
        while some := list(islice(coming, JOINED)):
            self.files += some
            counts += map(len, some)
            parts.append(_joined([file.columns for file in some]))
        self._first = [0, *accumulate(counts)]
        self._names_of = lru_cache(NAMES_OF_FILES)(lambda file: self.files[file].names())
        self.columns = _joined(parts)
        """By the names of KINDS."""
        for number, file in enumerate(self.files):  # each keeps a view of its rows
            rows = slice(self._first[number], self._first[number + 1])
            file.columns.update({name: column[rows] for name, column in self.columns.items()})
        self.file = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        """Which of the files each row is in."""
        self.ids = Ids(self.columns["index"], self.columns["sample"])

    @classmethod
    def read(cls, folder: OutputFolder) -> "LedgerIndex":
        """Read that of an output folder.

        Raises:
            UserError: a ledger cannot be read.
        """
        return cls(folder, read_all(folder.ledgers(), folder.path / FOLDER))

    def __len__(self) -> int:
        return len(self.file)

    def keep(self) -> None:
        """Keep the columns of each file that were made of its lines, for the next start; but those of the files that lines are
        added to, as they would not hold for long.

        Raises:
            OSError: one cannot be written.
        """
        kept, at_top = self.folder.path / FOLDER, set(self.folder.files(METADATA))
        for file in self.files:
            if file.ledger.path not in at_top or len(file) >= segments.SEGMENT_LINES:
                ownership.make_folder(kept)
                file.keep(kept_at(kept, file.ledger))

    # -- which rows -----------------------------------------------------------------------------------------------

    def last(self, among: Bools | None = None) -> Ints:
        """Return the rows that count, in the order of index and sample.

        Args:
            among: which rows are looked at; None: all.
        """
        return self.ids.last(among)

    def same_as(self, row: int, rows: Ints) -> int:
        """Return which of some rows, which are in the order of index and sample, is of the same image as this one."""
        return int(rows[int(np.searchsorted(self.ids.codes[rows], self.ids.codes[row]))])

    def id_at(self, row: int) -> TaskId:
        return int(self.columns["index"][row]), int(self.columns["sample"][row])

    def id_set(self, rows: Ints) -> set[TaskId]:
        """Return the ids of some rows: for a few."""
        return set(zip(self.columns["index"][rows].tolist(), self.columns["sample"][rows].tolist()))

    # -- what else they say ---------------------------------------------------------------------------------------

    def names(self, rows: Ints) -> Iterator[str]:
        """Yield the names of some rows' images, as they are seen from the output folder."""
        return (name.partition("\t")[0] for name in self.packed_names(rows))

    def all_names(self, rows: Ints) -> list[str]:
        """Return the same of images in files of their own, at once."""
        files, found = self.file[rows], list[str]()
        for some in np.split(rows, np.flatnonzero(np.diff(files)) + 1) if len(rows) else ():
            file = int(self.file[some[0]])
            names, places = self._names_of(file), some - self._first[file]
            first, end = int(places[0]), int(places[-1]) + 1
            is_run = end - first == len(places) and bool((np.diff(places) > 0).all())
            found += names[first:end] if is_run else map(names.__getitem__, places.tolist())
        return found

    def shards(self, rows: Ints) -> Iterator[str]:
        """Yield the names of the shards that some rows' images are in; "" for a file of its own."""
        return (name.partition("\t")[2] for name in self.packed_names(rows))

    def packed_names(self, rows: Ints) -> Iterator[str]:
        """Yield the names as they are kept: with those of their shards."""
        for file, row in zip(self.file[rows].tolist(), rows.tolist()):
            yield self._names_of(file)[row - self._first[file]]

    @cached_property
    def name_hashes(self) -> npt.NDArray[np.int32]:
        """Of each row's name, as this process hashes it."""
        found = np.zeros(len(self), dtype=np.int32)
        for first in range(0, len(self), AT_A_TIME):
            rows = self.ids.rows[first : first + AT_A_TIME]
            found[rows] = short_hashes(list(self.names(rows)))
        return found

    def name(self, row: int) -> str:
        return next(self.names(np.array([row])))

    def records(self, rows: Ints) -> Iterator[tuple[int, Record]]:
        """Yield the lines of some rows, in their order, with the row; one that a run has replaced meanwhile is left out."""
        for row, ledger, data, start in self._places(rows):
            record = record_at(ledger.path, data, start, ledger.inside)
            if record and id_of(record) == self.id_at(row):
                yield row, record

    def texts(self, rows: Ints) -> Iterator[str]:
        """Yield the lines of some rows as text, in their order, with names as they are seen from the output folder."""
        for _, ledger, data, start in self._places(rows):
            yield from_above(text_at(data, start), ledger.inside)

    def _places(self, rows: Ints) -> Iterator[tuple[int, LedgerFile, BinaryIO, int]]:
        """Where each line begins, in an open file."""
        with Readers() as readers:
            for row, file, start in zip(rows.tolist(), self.file[rows].tolist(), self.columns["start"][rows].tolist()):
                ledger = self.files[file].ledger
                yield row, ledger, readers.of(ledger), start

    # -- compared with the files ----------------------------------------------------------------------------------

    def compare(self, doubtful: Collection[TaskId] = (), with_times: bool = False) -> "Compared":
        """Look which rows' images are there in full; all files of the folder are looked at once.

        Args:
            doubtful: images whose size says too little.
            with_times: also when each was written.
        """
        good = np.zeros(len(self), dtype=bool)
        times = np.zeros(len(self) if with_times else 0, dtype=np.float64)
        unlisted: list[str] = []
        untimed: list[tuple[Place, Ints]] = []
        sizes = self.columns["size"]
        rows_of = self._by_folder()
        if len(rows := rows_of.pop(IN_SHARD, _NO_ROWS)):
            names, kept_in, shards = list(self.names(rows)), list(self.shards(rows)), Shards(self.folder.path)
            good[rows] = [shards.has(*each) for each in zip(kept_in, names, sizes[rows].tolist())]
            if with_times:
                times[rows] = [shards.time(shard) for shard in kept_in]
        there = {AT_TOP: ""} | {int(name): f"{name}/" for name in self.folder.image_folders()}
        places = [Place(number, there.get(number)) for number in sorted(there.keys() | rows_of.keys())]
        looks = Looks(self.folder.path, len(self))
        for place, found in zip(places, looks.into(places)):
            rows = rows_of.get(place.number, _NO_ROWS)
            seen = looks.compare(place, found, self.all_names(rows), sizes[rows])
            good[rows] = seen.good
            if with_times:
                times[rows] = seen.times
                untimed += [(place, rows)] if seen.holds else []
            unlisted += filter(is_picture, seen.unlisted)
        self._look_closer(good, doubtful)
        return Compared(self, good, unlisted, looks, times, untimed)

    def _by_folder(self) -> dict[int, Ints]:
        """The rows of each folder of images, by its number."""
        folders = self.columns["folder"]
        if not len(folders):
            return {}
        in_order = bool((folders[1:] >= folders[:-1]).all())
        order: Ints = self.ids.rows if in_order else np.argsort(folders, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(folders[order])) + 1)
        return {int(folders[rows[0]]): rows for rows in parts}

    def _look_closer(self, good: Bools, doubtful: Collection[TaskId]) -> None:
        """Of images whose size says too little: read their bytes."""
        if not doubtful:
            return
        positions = self.ids.find_all(doubtful)
        rows = np.array([row for row in positions if good[row]], dtype=np.int64)
        for row, record in self.records(rows):
            good[row] = is_as_its_line_says(self.folder.path, record)


def _joined(parts: Sequence[Columns]) -> Columns:
    """Columns behind one another; nothing is left in the parts."""
    return {
        name: np.concatenate([part.pop(name) for part in parts]) if parts else np.empty(0, kind)
        for name, kind in KINDS.items()
    }


class Readers(ExitStack):
    """Readers are open ledgers: not more than a process may have open, however many there are."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: dict[Path, BinaryIO] = {}

    def of(self, ledger: LedgerFile) -> BinaryIO:
        """Return one of them, open for reading.

        Raises:
            OSError: it cannot be opened.
        """
        if (found := self._opened.get(ledger.path)) is not None:
            return found
        if len(self._opened) >= FILES_AT_A_TIME:
            self.close()
            self._opened.clear()
        opened = self._opened[ledger.path] = self.enter_context(open_regular(ledger.path))
        return opened


def is_picture(name: str) -> bool:
    """Return whether a file is called as a picture that anyone may see."""
    return name.lower().endswith(PICTURE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def short_hashes(names: Sequence[str]) -> npt.NDArray[np.int32]:
    """Return what this process tells names by, in 32 bits each."""
    return np.fromiter(map(hash, names), np.int64, len(names)).astype(np.int32)


def from_above(text: str, inside: str) -> str:
    """Return the text of a line of a folder of images with its name as it is seen from the output folder."""
    begins = '{"file_name": "'
    return text.replace(begins, begins + inside, 1) if inside else text


class Ids:
    """Ids are the ids of rows, to be found again: indices may be any numbers up to 2^63.

    Args:
        index: of each row.
        sample: of each row.
    """

    def __init__(self, index: npt.NDArray[Any], sample: npt.NDArray[Any]) -> None:
        is_rising = len(index) < 2 or bool((index[1:] > index[:-1]).all())
        self._known: Ints = (index if is_rising else np.unique(index)).astype(np.int64, copy=False)
        self._samples = int(sample.max()) + 1 if len(sample) else 1
        small = len(self._known) * self._samples < 2**31
        self.codes: Ints = np.searchsorted(self._known, index).astype(np.int32 if small else np.int64)
        """A number for each row, in the order of index and sample."""
        self.codes *= self._samples
        self.codes += sample
        is_sorted = len(index) < 2 or bool((self.codes[1:] >= self.codes[:-1]).all())
        rows: Ints = np.arange(len(index), dtype=np.int32 if len(index) < 2**31 else np.int64)
        self.rows = rows
        """All of them."""
        self.order: Ints = rows if is_sorted else np.argsort(self.codes, kind="stable").astype(rows.dtype)
        """The rows in that order; of rows with one id the last one comes last."""

    def last(self, among: Bools | None = None) -> Ints:
        """Return of each id the last row, in the order of index and sample.

        Args:
            among: which rows are looked at; None: all.
        """
        order = self.order if among is None else self.order[among[self.order]]
        codes = self.codes[order]
        is_last = np.ones(len(order), dtype=bool)
        is_last[:-1] = codes[1:] != codes[:-1]
        found: Ints = order[is_last]
        return found

    def find(self, index: Ints, sample: Ints, among: Ints) -> Ints:
        """Return where among some codes, which are in order, those of these ids stand; -1 for one that is not there."""
        if not len(among) or not len(self._known):
            return np.full(len(index), -1)
        place = np.minimum(np.searchsorted(self._known, index), len(self._known) - 1)
        wanted = place * self._samples + sample
        at = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
        is_there = (self._known[place] == index) & (sample < self._samples) & (among[at] == wanted)
        return np.where(is_there, at, -1)

    def find_one(self, index: int, sample: int, among: Ints) -> int:
        """Return the same of one id."""
        place = int(self._known.searchsorted(index))
        if place == len(self._known) or sample >= self._samples or self._known[place] != index:
            return -1
        wanted = place * self._samples + sample
        at = int(among.searchsorted(wanted))
        return at if at < len(among) and among[at] == wanted else -1

    def find_all(self, ids: Collection[TaskId]) -> list[int]:
        """Return all rows of these ids."""
        rows: list[int] = []
        codes = self.codes[self.order]
        for index, sample in ids:
            place = int(np.searchsorted(self._known, index))
            if place < len(self._known) and self._known[place] == index and sample < self._samples:
                code = place * self._samples + sample
                first, end = np.searchsorted(codes, code), np.searchsorted(codes, code, "right")
                rows += self.order[first:end].tolist()
        return rows


@dataclass(frozen=True, slots=True)
class Compared:
    """What the files of a folder say of the rows of its ledgers."""

    index: LedgerIndex
    good: Bools
    """Of each row, whether its image is there in full."""
    unlisted: list[str]
    """Names of files that are called as pictures, of which no row says anything."""
    looks: Looks
    """What can be kept of it."""
    times: Floats
    """When each image was written, if that was asked for."""
    untimed: list[tuple[Place, Ints]] = field(default_factory=list)
    """Folders, with their rows, of which `times` has for each image when the last of them was written."""

    def done(self, good: Bools | None = None) -> "Done":
        """Return the images that are there in full, or those of which somebody has found out more."""
        return Done(self if good is None else replace(self, good=good))

    def latest(self, count: int) -> list[tuple[float, Record]]:
        """Return the images that were written last: when, and their lines. (Those of a shard were written at one time, as far as
        the system knows it; there the lines say more.)"""
        rows = self._latest_rows(count)
        found = [(written_at(record, float(self.times[row])), record) for row, record in self.index.records(rows)]
        return sorted(found, key=itemgetter(0))[-count:]

    def _latest_rows(self, count: int) -> Ints:
        """The rows of the images that were written last. Of the folders whose files nobody has asked for, those are asked in which
        they may be."""
        rows = self.index.last(self.good)
        untimed = sorted(self.untimed, key=lambda each: float(self.times[each[1][0]]))
        while True:
            times = self.times[rows]
            least = np.partition(times, -count)[-count] if len(rows) > count else -np.inf
            if not untimed or self.times[untimed[-1][1][0]] < least:
                return rows[times >= least]
            place, inside = untimed.pop()
            self.times[inside] = self.looks.times(place, self.index.all_names(inside))

    def num_damaged(self) -> list[int]:
        """Return, for each file, how many lines say nothing: of an image that is not there as they say, if no later file tells
        better; of one of which another line of the same file says it already; and what nobody can read."""
        index, wrong = self.index, ~self.good
        for rows in self._repeated():
            files, good = index.file[rows].tolist(), self.good[rows].tolist()
            last = max((file for file, is_good in zip(files, good) if is_good), default=-1)
            seen: set[int] = set()
            for row, file, is_good in zip(rows.tolist(), files, good):
                wrong[row] = file in seen if is_good else file >= last
                seen |= {file} if is_good else set()
        counts = np.bincount(index.file[wrong], minlength=len(index.files)).tolist()
        return [max(count + file.num_bad, file.num_torn) for count, file in zip(counts, index.files)]

    def _repeated(self) -> Iterator[Ints]:
        """The rows of each image that has several."""
        order, codes = self.index.ids.order, self.index.ids.codes
        same = codes[order][1:] == codes[order][:-1]
        if same.any():
            several = order[np.concatenate([same, [False]]) | np.concatenate([[False], same])]
            yield from np.split(several, np.flatnonzero(np.diff(codes[several])) + 1)


class Done(Mapping[TaskId, tuple[str, str]]):
    """Images that are there in full: the key of its row and the name of its file, by its task.

    It is made of columns: ten million take 100 bytes each with all that is known of them.
    """

    def __init__(self, compared: Compared | None = None) -> None:
        if compared is None:
            empty = LedgerIndex(OutputFolder(Path()), ())
            nothing = np.empty(0, np.int64)
            compared = Compared(empty, nothing.astype(bool), [], Looks(Path(), 0), nothing.astype(float))
        self._compared = compared
        self._index = compared.index
        self.rows: Ints = compared.index.last(compared.good)
        """Of the index, in the order of index and sample."""
        self._codes = compared.index.ids.codes[self.rows]

    def find(self, ids: Iterable[TaskId], count: int = -1) -> Ints:
        """Return the row of each of these tasks, or -1 if it is not done.

        Args:
            ids: any number.
            count: how many, if that is known.
        """
        pairs = np.fromiter(
            (number for task_id in ids for number in task_id), np.int64, 2 * count if count >= 0 else -1
        )
        return self._rows_at(self._index.ids.find(pairs[::2], pairs[1::2], self._codes))

    def _rows_at(self, at: Ints) -> Ints:
        return np.where(at < 0, -1, self.rows[at]) if len(self.rows) else at

    def num_of(self, asked: TaskRanges) -> int:
        """Return how many of them are among these tasks."""
        columns = self._index.columns
        return asked.num_in(columns["index"][self.rows], columns["sample"][self.rows])

    def rows_of(self, tasks: Sequence[Task]) -> Ints:
        """Return the row of each of these tasks, or -1 if it is not done."""
        if not isinstance(tasks, ManyTasks):
            return self.find((task.id for task in tasks), len(tasks))
        ids = tasks.ids()
        return self._rows_at(self._index.ids.find(ids.index, ids.sample, self._codes))

    def rows_without(self, tasks: Sequence[Task]) -> Ints:
        """Return the rows of the images of none of these tasks."""
        found: Ints = np.setdiff1d(self.rows, self.rows_of(tasks))
        return found

    def is_same(self, row: int, key: str, name: str) -> bool:
        """Return whether the row of an image has this key, and its file this name."""
        return int(self._index.columns["key"][row]) == int(key, 16) and bool(
            self._index.name_hashes[row] == short_hashes([name])[0]
        )

    def first_store(self) -> str | None:
        """Return how the first of them is kept, as --store names it; None: there is none. (A job keeps to one way.)"""
        if not len(self.rows):
            return None
        first = self.rows[:1]
        return (
            store_of(next(self._index.shards(first)))
            if self._index.columns["folder"][first[0]] == IN_SHARD
            else "files"
        )

    def __getitem__(self, task_id: TaskId) -> tuple[str, str]:
        row = self._row(task_id)
        if row < 0:
            raise KeyError(task_id)
        return f"{int(self._index.columns['key'][row]):016x}", self._index.name(row)

    def __contains__(self, task_id: object) -> bool:
        return isinstance(task_id, tuple) and self._row(task_id) >= 0

    def _row(self, task_id: TaskId) -> int:
        at = self._index.ids.find_one(*task_id, self._codes)
        return -1 if at < 0 else int(self.rows[at])

    def __iter__(self) -> Iterator[TaskId]:
        for first in range(0, len(self.rows), AT_A_TIME):
            rows = self.rows[first : first + AT_A_TIME]
            yield from zip(self._index.columns["index"][rows].tolist(), self._index.columns["sample"][rows].tolist())

    def __len__(self) -> int:
        return len(self.rows)
