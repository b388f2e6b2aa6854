"""The batches that come to a rank one by one: those of its replica's share and, with --shares claimed, what others leave.

    for batch in Work(channel, plan.batches, claims): ...

Which images a batch has does not depend on who makes it, so an image is the same either way. The ranks of a replica make
the same batches: the first one claims, and tells the others.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dglaunch.data.task import Batch
from dglaunch.distributed.channel import Channel
from dglaunch.distributed.claims import Claims
from dglaunch.distributed.messages import message

PAYS_FROM = 2.0
"""Batches are taken over only where those that are left would take so many times the seconds that taking them over costs."""


@message
@dataclass(frozen=True, slots=True)
class Taken:
    """Batches that a replica has taken."""

    replica: int
    """Whose share they are from."""
    numbers: list[int]
    """In that share."""


class Work:
    """Work hands out the batches of one rank, in the order in which they are made."""

    def __init__(
        self, channel: Channel, batches: Sequence[Sequence[Batch]], claims: Claims, seconds_to_take_over: float = 0.0
    ) -> None:
        """
        Args:
            batches: for each replica, those of its share.
            seconds_to_take_over: what it costs to take batches of another share, however many; 0: they are taken singly.
        """
        self._channel = channel
        self._batches = batches
        self._claims = claims
        self._seconds_to_take_over = seconds_to_take_over
        self._coming: deque[Batch] = deque()
        self._begun = time.monotonic()
        self._num_begun = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._coming:
            self._coming += self._take()
        if not self._coming:
            raise StopIteration
        self._num_begun += 1
        return self._coming.popleft()

    def coming(self) -> list[Batch]:
        """Return what was taken together with the last batch and is not begun."""
        return list(self._coming)

    def _take(self) -> list[Batch]:
        topology = self._channel.topology
        claimed = self._claim(topology.replica) if topology.is_leader else None
        taken = next((said for said in self._channel.all_of_replica(claimed) if said is not None), None)
        if taken is None:
            return []
        return [self._batches[taken.replica][number] for number in taken.numbers]

    def _claim(self, replica: int) -> Taken | None:
        own = self._claims.own(replica)
        if own is not None:
            return Taken(replica, [own])
        seconds = (time.monotonic() - self._begun) / max(self._num_begun, 1)
        found = left_by_others(self._claims, len(self._batches), self._seconds_to_take_over, seconds)
        return None if found is None else Taken(*found)


def left_by_others(
    claims: Claims, num_replicas: int, seconds_to_take_over: float, seconds: float
) -> tuple[int, list[int]] | None:
    """Take one batch of another share, or several at once where taking over costs time and is worth it.

    Args:
        seconds_to_take_over: what it costs, however many batches it is.
        seconds: what a batch takes on the replica that asks.
    """
    if not seconds_to_take_over:
        return claims.others()
    least = math.ceil(PAYS_FROM * seconds_to_take_over / max(seconds, 1e-3))
    return claims.others(parts=num_replicas, least=least)
