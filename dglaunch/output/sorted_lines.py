"""The lines of a folder in the order of their index. What they say is read as it is asked for: a job may have ten million."""

import copy
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self, overload

import numpy as np
import numpy.typing as npt

from dglaunch.data.task import Record
from dglaunch.output.file_index import Ints
from dglaunch.output.ledger import FAILURES, OutputFolder
from dglaunch.output.ledger_index import AT_A_TIME, Ids, LedgerIndex, Readers
from dglaunch.output.lines import LedgerFile, LineKind, id_of, record_at, scan_places


class SortedLines(Sequence[Record]):
    """The ledger's lines, and the failures that no later start made good; of several lines about one image the last counts.

    In memory is only where each line stands. It can be gone through more than once.
    """

    def __init__(self, folder: OutputFolder) -> None:
        """
        Raises:
            UserError: a ledger cannot be read.
        """
        failures = [LedgerFile(path) for path in folder.files(FAILURES)]
        index = LedgerIndex.read(folder)
        self._ledgers = [*failures, *(file.ledger for file in index.files)]
        self._places = _places(_failed(failures), index, len(failures))
        self._is_failure = self._places.file < len(failures)
        self.num_failed = int(self._is_failure.sum())

    def only(self, failed: bool) -> Self:
        """Return the failures alone, or the ledger's lines alone."""
        return self._some(self._is_failure == failed)

    def _some(self, which: slice | npt.NDArray[np.bool_]) -> Self:
        chosen = copy.copy(self)
        chosen._places, chosen._is_failure = self._places.some(which), self._is_failure[which]
        chosen.num_failed = int(chosen._is_failure.sum())
        return chosen

    def num_shared(self, other: "SortedLines") -> int:
        """Return how many images both have lines about."""
        both = np.concatenate([self._places.ids, other._places.ids])
        return len(both) - len(np.unique(both, axis=0))

    def __len__(self) -> int:
        return len(self._places.index)

    @overload
    def __getitem__(self, number: int) -> Record: ...
    @overload
    def __getitem__(self, number: slice) -> Self: ...
    def __getitem__(self, number: int | slice) -> Record | Self:
        """Return one line, or some of them; {} in the place of one that a run has replaced meanwhile."""
        if isinstance(number, slice):
            return self._some(number)
        ledger = self._ledgers[self._places.file[number]]
        with Readers() as readers:
            return record_at(ledger.path, readers.of(ledger), int(self._places.start[number]), ledger.inside)

    def __iter__(self) -> Iterator[Record]:
        """Yield the lines; one that a run has replaced meanwhile is left out."""
        with Readers() as readers:
            for first in range(0, len(self), AT_A_TIME):
                for index, sample, file, start in self._places.some(slice(first, first + AT_A_TIME)).rows():
                    ledger = self._ledgers[file]
                    record = record_at(ledger.path, readers.of(ledger), start, ledger.inside)
                    if record and id_of(record) == (index, sample):
                        yield record


@dataclass(frozen=True, slots=True)
class _Places:
    """Where lines stand, as columns."""

    index: Ints
    sample: Ints
    file: Ints
    """Its number."""
    start: Ints
    """The byte at which the line begins."""

    def some(self, which: slice | Ints | npt.NDArray[np.bool_]) -> "_Places":
        return _Places(self.index[which], self.sample[which], self.file[which], self.start[which])

    def rows(self) -> Iterator[tuple[int, int, int, int]]:
        return zip(self.index.tolist(), self.sample.tolist(), self.file.tolist(), self.start.tolist())

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Index and sample of each."""
        return np.stack([self.index, self.sample], axis=1).astype(np.int64, copy=False)


def _failed(failures: Sequence[LedgerFile]) -> _Places:
    """Where each failure stands."""
    numbers = array("q")
    for file, ledger in enumerate(failures):
        for start, line in scan_places(*ledger):
            if line.kind is LineKind.OURS:
                numbers.extend((*id_of(line.record), file, start))
    return _Places(*np.frombuffer(numbers, dtype=np.int64).reshape(-1, 4).T)


def _places(failed: _Places, index: LedgerIndex, first: int) -> _Places:
    """Where the line of each image stands, in the order of index and sample; those of failures, which any line of a ledger makes
    good, among them.

    Args:
        failed: where the failures stand.
        index: of the ledgers, whose files have the numbers from `first` on.
    """
    columns = index.columns
    file = index.file
    file += first  # nothing else looks at this index
    made = _Places(columns["index"], columns["sample"], file, columns["start"])
    if not len(failed.index):
        rows = index.last()
        is_all = len(rows) == len(made.index) and index.ids.order is index.ids.rows
        return made if is_all else made.some(rows)
    pairs = ((getattr(failed, name), getattr(made, name)) for name in _Places.__slots__)
    both = _Places(*(np.concatenate([one, other.astype(one.dtype, copy=False)]) for one, other in pairs))
    return both.some(Ids(both.index, both.sample).last())
