"""The indices of the rows of a large table."""

from array import array
from typing import Any

import numpy as np

from dglaunch.data.numbering import Numbering
from dglaunch.errors import InputError

Numbers = np.ndarray[Any, np.dtype[np.integer[Any]]]
SHOWN = InputError.SHOWN
"""Indices of which it is looked up who had them first."""


class ManyNumbers(Numbering):
    """The indices of many rows: which of them are the same is looked at once all are there."""

    def __init__(self) -> None:
        self._parts: list[tuple[Numbers | range, Numbers | range]] = []
        """Indices, and the numbers of their rows."""
        self._index, self._number = array("q"), array("q")
        """Those that came one by one."""

    def __len__(self) -> int:
        return sum(len(index) for index, _ in self._all)

    def claim(self, index: int, number: int, label: str) -> str | None:
        self._index.append(index)
        self._number.append(number)
        return None

    def add(self, index: Numbers, first: int) -> None:
        """Note the indices of rows that follow one another.

        Args:
            first: the number of the first of them.
        """
        rows = range(first, first + len(index))
        is_plain = bool(np.array_equal(index, np.arange(rows.start, rows.stop)))
        self._parts.append((rows if is_plain else index, rows))

    @property
    def _all(self) -> list[tuple[Numbers | range, Numbers | range]]:
        singly = (np.frombuffer(self._index, np.int64), np.frombuffer(self._number, np.int64))
        return [*self._parts, *([singly] if len(self._index) else [])]

    @property
    def least(self) -> int:
        return min(
            int(min(index[0], index[-1]) if isinstance(index, range) else index.min())
            for index, _ in self._all
            if len(index)
        )

    @property
    def greatest(self) -> int:
        return max(int(index[-1] if isinstance(index, range) else index.max()) for index, _ in self._all if len(index))

    def repeated(self, most: int) -> list[tuple[int, int, int]]:
        """Return the first few rows whose index another row has had: the index, the number of that row, and its own."""
        parts = self._all
        if all(isinstance(index, range) or np.array_equal(index, number) for index, number in parts):
            return []
        index = np.concatenate([np.asarray(index, np.int64) for index, _ in parts])
        order = np.argsort(index, kind="stable")
        is_again = np.flatnonzero(index[order][1:] == index[order][:-1]) + 1
        if not len(is_again):
            return []
        number = np.concatenate([np.asarray(number, np.int64) for _, number in parts])
        by_row = sorted((int(number[order[at]]), int(index[order[at]])) for at in is_again[:most])
        numbers = {value: int(number[index == value].min()) for value in {value for _, value in by_row[:SHOWN]}}
        return [(value, numbers[value], row) for row, value in by_row if value in numbers]
