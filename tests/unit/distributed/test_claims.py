"""Batches of all shares, each handed out once, whoever asks in whatever order; and nobody waits for the slowest."""

import heapq
import random
import threading
from collections import Counter
from collections.abc import Sequence

import pytest

from dglaunch.distributed import store
from dglaunch.distributed.claims import Claims
from dglaunch.errors import LostPeer


class Numbers:
    """torchrun's store, in this process."""

    def __init__(self) -> None:
        self._values: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self._values[key] += amount
            return self._values[key]


def next_of(claims: Claims, replica: int, parts: int | None) -> tuple[int, list[int]] | None:
    own = claims.own(replica)
    return (replica, [own]) if own is not None else claims.others(parts)


@pytest.mark.parametrize("seed", range(40))
def test_each_batch_is_taken_once_in_any_order(seed: int) -> None:
    draw = random.Random(seed)
    counts = [draw.randrange(0, 12) for _ in range(draw.randrange(1, 6))]
    claims = Claims(Numbers(), [[1.0 + draw.random()] * count for count in counts])
    taken: list[tuple[int, int]] = []
    asking = list(range(len(counts)))
    while asking:
        replica = draw.choice(asking)
        found = next_of(claims, replica, draw.choice([None, len(counts)]))
        if found is None:
            asking.remove(replica)
        else:
            taken += [(found[0], number) for number in found[1]]
    assert sorted(taken) == [(replica, number) for replica, count in enumerate(counts) for number in range(count)]


def test_each_batch_is_taken_once_by_threads_at_the_same_time() -> None:
    numbers, costs = Numbers(), [[1.0] * 300, [1.0] * 10, [], [1.0] * 100]
    taken: list[tuple[int, int]] = []

    def work(replica: int) -> None:
        claims = Claims(numbers, costs)  # each rank has its own, and they share the numbers
        while (found := next_of(claims, replica, None if replica % 2 else 4)) is not None:
            taken.extend((found[0], number) for number in found[1])

    threads = [threading.Thread(target=work, args=(replica,)) for replica in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 410


def test_own_batches_come_in_their_order_and_others_from_the_back_of_the_longest_share() -> None:
    claims = Claims(Numbers(), [[1.0], [1.0] * 4, [9.0] * 2])
    assert claims.own(0) == 0 and claims.own(0) is None
    assert claims.others() == (2, [1])
    assert claims.own(2) == 0 and claims.own(2) is None
    assert claims.others() == (1, [3])
    assert claims.others(parts=2) == (1, [1, 2])
    assert claims.own(1) == 0 and claims.own(1) is None and claims.others() is None


def test_what_is_not_worth_while_is_left_to_its_owner() -> None:
    claims = Claims(Numbers(), [[], [1.0] * 4])
    assert claims.others(parts=2, least=5) is None
    assert claims.others(parts=2, least=4) == (1, [2, 3])


def ends(seconds: Sequence[Sequence[float]], claimed: bool) -> list[float]:
    """When each replica is through, on a clock of its own: `seconds[r]` has what a batch takes on replica r."""
    claims = Claims(Numbers(), [[1.0] * len(share) for share in seconds])
    clock = [(0.0, replica) for replica in range(len(seconds))]
    through = [0.0] * len(seconds)
    while clock:
        now, replica = heapq.heappop(clock)
        own = claims.own(replica)
        found = (replica, [own]) if own is not None else claims.others() if claimed else None
        if found is None:
            through[replica] = now
        else:
            heapq.heappush(clock, (now + seconds[replica][0], replica))
    return through


def test_nobody_waits_longer_than_a_batch_for_a_replica_three_times_slower() -> None:
    seconds = [[3.0 if replica == 5 else 1.0] * 100 for replica in range(8)]
    static, claimed = ends(seconds, claimed=False), ends(seconds, claimed=True)
    assert max(static) - min(static) == 200.0
    assert max(claimed) - min(claimed) <= 3.0
    assert max(claimed) < 800 / (7 + 1 / 3) + 3.0


class GoneStore:
    """Of a rank 0 that has died."""

    def add(self, key: str, amount: int) -> int:
        raise RuntimeError("Failed to recv, got 0 bytes")


def test_whoever_holds_the_numbers_may_die() -> None:
    """Rank 0 does, where torchrun's agents share no store: it was a traceback."""
    with pytest.raises(LostPeer, match="one of them has died"):
        Claims(store.Numbers(GoneStore()), [[1.0]]).own(0)  # type: ignore[arg-type]
