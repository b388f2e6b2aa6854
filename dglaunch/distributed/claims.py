"""Who makes which batch: each replica takes its own share from the front, and one that is through takes others' from the back.

    claims = Claims(store, costs)         # costs: for each replica, what each of its batches costs, in their order
    claims.own(replica)                   # the number of its next batch; None when there is none
    claims.others(most)                   # (replica, numbers) of batches that nobody has begun; None when there are none

A share is one number in torchrun's store: how many of its batches were taken from the front and, above them, from the back.
One addition takes a batch and says whether it was still free, so none is taken twice and none is left.
"""

import math
from array import array
from collections.abc import Iterable
from itertools import accumulate
from typing import Protocol

FROM_BACK = 1 << 32
"""What is added for a batch that is taken from the back."""


class Counters(Protocol):
    """Numbers that all ranks share; torch's stores are some."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number, which begins at 0, and return what it is then; nobody comes in between."""


class Claims:
    """Claims hand out the batches of all shares, each once."""

    def __init__(self, counters: Counters, costs: Iterable[Iterable[float]]) -> None:
        """
        Args:
            costs: for each replica, what each of its batches costs, in their order and in any unit.
        """
        self._counters = counters
        self._until = [array("d", accumulate(share, initial=0.0)) for share in costs]
        """For each share, what its first batches cost together."""

    def own(self, replica: int) -> int | None:
        """Take the next batch of a replica's own share, and return its number; None if none is left."""
        front, back = _split(self._counters.add(str(replica), 1))
        return front - 1 if front + back <= self._length(replica) else None

    def others(self, parts: int | None = None, least: int = 1) -> tuple[int, list[int]] | None:
        """Take batches of the share of which most is left, and return whose they are and their numbers.

        Args:
            parts: how many replicas may want some, where taking several at once is cheaper; None: one batch.
            least: how many must be left for it to be worth while.
        """
        while True:
            left = [self._left(replica) for replica in range(len(self._until))]
            _, replica = max((cost, replica) for replica, (cost, _) in enumerate(left))
            num_left = left[replica][1]
            if num_left < least:
                return None
            count = 1 if parts is None else math.ceil(num_left / parts)
            front, back = _split(self._counters.add(str(replica), count * FROM_BACK))
            first = self._length(replica) - back
            if taken := list(range(max(first, front), first + count)):
                return replica, taken

    def _left(self, replica: int) -> tuple[float, int]:
        """What is left of a share, and in how many batches."""
        until = self._until[replica]
        front, back = _split(self._counters.add(str(replica), 0))
        end = max(self._length(replica) - back, 0)
        return (until[end] - until[front], end - front) if front < end else (0.0, 0)

    def _length(self, replica: int) -> int:
        return len(self._until[replica]) - 1


def _split(value: int) -> tuple[int, int]:
    """Taken from the front, and from the back."""
    return value % FROM_BACK, value // FROM_BACK
