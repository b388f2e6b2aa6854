"""What the loop does with batches that fail, on 8 ranks in one process (support/scripted.py): the ranks of a replica do the
same, whichever of them is in trouble, and the other replicas go on. One test of each on real ranks is in tests/torchrun."""

import threading
from typing import Any

import pytest

from dglaunch.backends.base import ItemError
from dglaunch.distributed.topology import Topology
from dglaunch.errors import ReplicaError, UserError
from dglaunch.run.report import LeaderReport
from support.scripted import Ran, batch, on_ranks_of_one_process

WORLD = 8


class OutOfMemoryError(RuntimeError):
    """Named as torch's, which the run recognises."""


def batches(place: Topology) -> list[Any]:
    """Two batches of four for each replica: replica 0 has 0-7, replica 1 has 8-15."""
    first = 8 * place.replica
    return [batch(*range(first, first + 4)), batch(*range(first + 4, first + 8))]


def reports(ran: Ran) -> list[LeaderReport]:
    """All ranks have ended well."""
    for ending in ran.endings.values():
        assert isinstance(ending, LeaderReport), ending
    return [ran.endings[rank] for rank in sorted(ran.endings)]  # type: ignore[misc]


def alike(ran: Ran, replica_size: int) -> list[list[list[int]]]:
    """What each replica was asked to make, which must be the same on all of its ranks."""
    replicas = [range(first, first + replica_size) for first in range(0, WORLD, replica_size)]
    for ranks in replicas:
        assert len({str(ran.generated[rank]) for rank in ranks}) == 1, ran.generated
    return [ran.generated[ranks[0]] for ranks in replicas]


@pytest.mark.parametrize("replica_size", [1, 2, 4, 8])
def test_each_image_is_sent_once_by_the_leader(replica_size: int) -> None:
    ran = on_ranks_of_one_process(WORLD, replica_size, batches)
    assert sorted(ran.results) == list(range(8 * WORLD // replica_size)) and not ran.failures
    senders = {result.record["rank"] for result in ran.results.values()}
    assert senders == set(range(replica_size - 1, WORLD, replica_size))
    assert all(len(asked) == 2 for asked in alike(ran, replica_size)) and not any(r.events for r in reports(ran))


@pytest.mark.parametrize("troubled", [0, 2, 3])
def test_a_batch_that_raises_on_one_rank_is_run_one_by_one_by_its_replica(troubled: int) -> None:
    def script(rank: int, indices: list[int]) -> None:
        if rank == troubled and 2 in indices:
            raise RuntimeError("a poisoned prompt")

    ran = on_ranks_of_one_process(WORLD, 4, batches, script)
    first, second = alike(ran, 4)
    assert first == [[0, 1, 2, 3], [0], [1], [2], [3], [4, 5, 6, 7]]
    assert second == [[8, 9, 10, 11], [12, 13, 14, 15]], "the other replica does not notice"
    assert ran.failures == {2: "RuntimeError: a poisoned prompt"} and len(ran.results) == 16
    assert "run one by one" in reports(ran)[3].events[0] and not reports(ran)[7].events


@pytest.mark.parametrize("troubled", [0, 3])
def test_out_of_memory_on_one_rank_halves_for_its_replica_and_is_remembered(troubled: int) -> None:
    def script(rank: int, indices: list[int]) -> None:
        if rank == troubled and len(indices) > 1:
            raise OutOfMemoryError("CUDA out of memory")

    ran = on_ranks_of_one_process(WORLD, 4, batches, script)
    first, second = alike(ran, 4)
    assert first == [[0, 1, 2, 3], [0, 1], *([n] for n in range(8))], "4 -> 2 -> 1, once for the run"
    assert second == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert not ran.failures and len(ran.results) == 16
    assert len(reports(ran)[3].events) == 2


def test_an_image_that_does_not_fit_alone_is_a_failure() -> None:
    def script(_: int, indices: list[int]) -> None:
        if 5 in indices:
            raise OutOfMemoryError("CUDA out of memory")

    ran = on_ranks_of_one_process(WORLD, 8, batches, script)
    (asked,) = alike(ran, 8)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [4], [5], [6], [7]]
    assert list(ran.failures) == [5] and len(ran.results) == 8


def test_an_item_error_concerns_its_item_and_is_not_tried_again() -> None:
    def script(_: int, indices: list[int]) -> Any:
        from PIL import Image

        return [ItemError("refused") if n == 6 else Image.new("RGB", (8, 8)) for n in indices]

    ran = on_ranks_of_one_process(WORLD, 2, batches, script)
    assert alike(ran, 2)[0] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert ran.failures == {6: "refused"} and not any(report.events for report in reports(ran))
    assert ran.results[5].record["batch_size"] == 4


@pytest.mark.parametrize("troubled", [1, 3])
def test_a_lost_gpu_ends_its_replica_on_all_ranks(troubled: int) -> None:
    def script(rank: int, _: list[int]) -> None:
        if rank == troubled:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    ran = on_ranks_of_one_process(WORLD, 4, batches, script)
    assert all(isinstance(ran.endings[rank], ReplicaError) for rank in range(4))
    assert all(isinstance(ran.endings[rank], LeaderReport) for rank in range(4, 8))
    assert sorted(ran.results) == list(range(8, 16)), "no image of the lost replica, all of the other"


def test_too_few_images_end_the_replica() -> None:
    ran = on_ranks_of_one_process(WORLD, 2, batches, lambda rank, _: [] if rank == 1 else None)
    leader = ran.endings[1]
    assert isinstance(leader, ReplicaError) and "returned 0 images for 4 prompts" in str(leader)
    assert sorted(ran.results) == list(range(8, 32))


@pytest.mark.parametrize("signalled", [0, 5])
def test_a_signal_to_one_rank_stops_its_replica_before_the_next_batch(signalled: int) -> None:
    stops = {rank: threading.Event() for rank in range(WORLD)}

    def script(rank: int, indices: list[int]) -> None:
        if rank == signalled:
            stops[rank].set()

    ran = on_ranks_of_one_process(WORLD, 4, batches, script, stop=stops.__getitem__)
    stopped, other = signalled // 4, 1 - signalled // 4
    asked = alike(ran, 4)
    assert [len(asked[stopped]), len(asked[other])] == [1, 2], "what was under way is whole"
    drained = {rank for rank, report in enumerate(reports(ran)) if report.drained}
    assert drained == set(range(4 * stopped, 4 * stopped + 4))
    assert len(ran.results) == 12 and not ran.failures


def test_a_full_disk_stops_every_replica_without_calling_it_drained() -> None:
    full = threading.Event()
    full.set()
    ran = on_ranks_of_one_process(WORLD, 4, batches, no_room=full)
    assert alike(ran, 4) == [[], []] and not any(report.drained for report in reports(ran))


def test_ranks_that_read_different_prompts_are_caught_on_every_rank() -> None:
    """xDiT would draw garbage without a word."""
    ran = on_ranks_of_one_process(WORLD, 8, lambda place: [batch(0, 1, seed=place.rank == 6)])
    assert all(isinstance(error, ReplicaError) and "different batches" in str(error) for error in ran.endings.values())
    assert not any(ran.generated.values()) and not ran.results


def test_what_no_item_can_get_past_ends_the_run_with_what_came() -> None:
    def script(_: int, indices: list[int]) -> None:
        if 4 in indices:
            raise UserError("The key is wrong; set another.")

    ran = on_ranks_of_one_process(WORLD, 1, batches, script)
    first = reports(ran)[0]
    assert isinstance(first.error, UserError) and sorted(n for n in ran.results if n < 8) == [0, 1, 2, 3]
    assert all(report.error is None for report in reports(ran)[1:])
