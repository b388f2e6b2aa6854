"""The lines of a folder in the order of their index. What they say is read as it is asked for: a job may have ten million."""

import copy
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from dglaunch.data.task import Record
from dglaunch.output.ledger import FAILURES, OutputFolder
from dglaunch.output.ledger_index import AT_A_TIME, LedgerIndex, Readers
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
        parts = [_failed(failures), _places(index, len(failures))]
        places = np.concatenate(parts) if len(parts[0]) else parts[1]
        places = places[np.lexsort((places[:, 1], places[:, 0]))]  # stable: the last of equal ones was read last
        is_last = np.ones(len(places), dtype=bool)
        is_last[:-1] = (places[1:, :2] != places[:-1, :2]).any(axis=1)
        self._places = places[is_last]
        self._is_failure = self._places[:, 2] < len(failures)
        self.num_failed = int(self._is_failure.sum())

    def only(self, failed: bool) -> Self:
        """Return the failures alone, or the ledger's lines alone."""
        return self._some(self._is_failure == failed)

    def _some(self, which: slice | npt.NDArray[np.bool_]) -> Self:
        chosen = copy.copy(self)
        chosen._places, chosen._is_failure = self._places[which], self._is_failure[which]
        chosen.num_failed = int(chosen._is_failure.sum())
        return chosen

    def num_shared(self, other: "SortedLines") -> int:
        """Return how many images both have lines about."""
        both = np.concatenate([self._places[:, :2], other._places[:, :2]])
        return len(both) - len(np.unique(both, axis=0))

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, number: int) -> Record: ...
    @overload
    def __getitem__(self, number: slice) -> Self: ...
    def __getitem__(self, number: int | slice) -> Record | Self:
        """Return one line, or some of them; {} in the place of one that a run has replaced meanwhile."""
        if isinstance(number, slice):
            return self._some(number)
        _, _, file, start = self._places[number].tolist()
        ledger = self._ledgers[file]
        with Readers() as readers:
            return record_at(ledger.path, readers.of(ledger), start, ledger.inside)

    def __iter__(self) -> Iterator[Record]:
        """Yield the lines; one that a run has replaced meanwhile is left out."""
        with Readers() as readers:
            for first in range(0, len(self), AT_A_TIME):
                for index, sample, file, start in self._places[first : first + AT_A_TIME].tolist():
                    ledger = self._ledgers[file]
                    record = record_at(ledger.path, readers.of(ledger), start, ledger.inside)
                    if record and id_of(record) == (index, sample):
                        yield record


def _failed(failures: Sequence[LedgerFile]) -> npt.NDArray[Any]:
    """Index, sample, number of the file and place of each failure."""
    numbers = array("q")
    for file, ledger in enumerate(failures):
        for start, line in scan_places(*ledger):
            if line.kind is LineKind.OURS:
                numbers.extend((*id_of(line.record), file, start))
    return np.frombuffer(numbers, dtype=np.int64).reshape(-1, 4)


def _places(index: LedgerIndex, first: int) -> npt.NDArray[Any]:
    """The same of the ledgers' lines, whose files have the numbers from `first` on."""
    places = np.empty((len(index), 4), dtype=np.int64)
    for column, name in enumerate(("index", "sample")):
        places[:, column] = index.columns[name]
    places[:, 2] = index.file + first
    places[:, 3] = index.columns["start"]
    return places
