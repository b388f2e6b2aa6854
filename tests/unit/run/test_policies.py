"""The loop and collecting on 8 ranks in one process: what the ranks do together when something goes wrong on one."""

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dglaunch.backends.base import Slot
from dglaunch.data.task import Batch, Result
from dglaunch.errors import Drained, OutputError, ReplicaError, UserError
from dglaunch.run import loop as loops
from support.scripted import OutOfMemoryError, Rank, World, batches_of, indices, item_error, shares_of

MODES = ["main", "node", "rank"]


def raising(rank: Rank, when: Callable[[Batch], bool], error: BaseException) -> None:
    """Let the rank's backend raise for some batches."""

    def trouble(batch: Batch) -> None:
        if when(batch):
            raise error

    rank.backend.trouble = trouble


def counted(world: World) -> Counter[object]:
    """What rank 0 heard of, by index."""
    return indices(world.ranks[0].written)


def errors(world: World) -> dict[object, object]:
    return {result.record["index"]: result.record["error"] for result in world.ranks[0].written if result.failed}


def is_whole(batch: Batch) -> bool:
    return len(batch) > 1


# -- delivery -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("replica_size", [1, 2, 4])
def test_nothing_is_lost_or_doubled(tmp_path: Path, mode: str, replica_size: int) -> None:
    world = World(8, replica_size, mode, node_size=4)
    num_replicas = 8 // replica_size
    written: Counter[tuple[int, object]] = Counter()
    lock = threading.Lock()

    def write(rank: Rank, result: Result) -> None:
        with lock:
            written[rank.topology.rank, result.record["index"]] += 1

    world.run(shares_of(num_replicas, 3, 1, 4, 2), tmp_path, write)
    assert counted(world) == Counter(range(10 * num_replicas)), "rank 0 heard of each once"
    assert Counter(index for _, index in written.elements()) == Counter(range(10 * num_replicas)), "each written once"
    for (number, index), _ in written.items():
        maker = world.leaders[int(str(index)) // 10].topology
        assert number == maker.writer
    sink = world.ranks[0].collector.sink  # type: ignore[union-attr]
    assert set(sink.reports) == set(world.ranks[0].topology.leaders) and sink.error is None
    assert all(len(rank.backend.calls) == 4 for rank in world.ranks), "the ranks of a replica get the same batches"


def test_rank_0_hears_of_what_others_wrote_without_its_bytes(tmp_path: Path) -> None:
    world = World(4, mode="rank")
    world.run(shares_of(4, 2), tmp_path)
    elsewhere = [result for result in world.ranks[0].written if result.written]
    assert len(elsewhere) == 6 and all(result.data == b"" for result in elsewhere)


def test_several_threads_over_one_list(tmp_path: Path) -> None:
    world = World(8)
    world.run(shares_of(8, *[1] * 20), tmp_path, workers=6)
    assert counted(world) == Counter(range(160))


# -- what goes wrong with a batch ---------------------------------------------------------------------------------


def test_all_ranks_of_a_replica_split_where_one_raises(tmp_path: Path) -> None:
    world = World(8, replica_size=4)
    raising(world.ranks[1], lambda batch: any(task.index == 2 for task in batch.tasks), ValueError("poison"))
    world.run(shares_of(2, 4, 4), tmp_path)
    for rank in world.ranks[:4]:
        assert rank.backend.calls == [[0, 1, 2, 3], [0], [1], [2], [3], [4, 5, 6, 7]]
    for rank in world.ranks[4:]:
        assert rank.backend.calls == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert errors(world) == {2: "ValueError: poison"}
    assert counted(world) == Counter(range(16))


def test_out_of_memory_on_one_rank_halves_for_its_replica_and_is_noted(tmp_path: Path) -> None:
    world = World(8, replica_size=2)
    raising(world.ranks[3], lambda batch: len(batch) > 2, OutOfMemoryError("9 GiB"))
    world.run(shares_of(4, 8, 4), tmp_path)
    for rank in world.ranks[2:4]:
        assert [len(call) for call in rank.backend.calls] == [8, 4, 2, 2, 2, 2, 2, 2], "remembered for the next batch"
    assert [len(call) for call in world.ranks[0].backend.calls] == [8, 4]
    assert counted(world) == Counter(range(48)) and not errors(world)
    notes = sorted(path.name for path in tmp_path.iterdir())
    assert notes == [".dglaunch-oom-64x64-4.json", ".dglaunch-oom-64x64-8.json"], "for a start whose peers never answer"


def test_a_replica_of_one_leaves_no_note(tmp_path: Path) -> None:
    world = World(2)
    raising(world.ranks[1], lambda batch: len(batch) > 2, OutOfMemoryError("9 GiB"))
    world.run(shares_of(2, 4), tmp_path)
    assert not list(tmp_path.iterdir()) and not errors(world)


def test_an_item_error_is_recorded_and_not_tried_again(tmp_path: Path) -> None:
    world = World(8)

    def refuse_first(batch: Batch) -> dict[int, Slot]:
        return item_error(0)

    world.ranks[5].backend.trouble = refuse_first
    world.run(shares_of(8, 3), tmp_path)
    assert errors(world) == {15: "refused"}
    assert all(len(rank.backend.calls) == 1 for rank in world.ranks)
    failed = next(result for result in world.ranks[0].written if result.failed)
    assert failed.record["batch_size"] == 3 and failed.record["rank"] == 5


def test_an_image_that_cannot_be_encoded_concerns_it_alone(tmp_path: Path) -> None:
    world = World(2)
    world.ranks[1].backend.trouble = lambda _: {1: Image.new("RGB", (0, 0))}
    world.run(shares_of(2, 3), tmp_path)
    assert list(errors(world)) == [4] and "could not be encoded" in str(errors(world)[4])
    assert counted(world) == Counter(range(6))


def test_a_lost_gpu_ends_its_replica_and_nobody_waits(tmp_path: Path) -> None:
    world = World(8, replica_size=2)
    raising(world.ranks[2], lambda batch: batch.tasks[0].index == 9, RuntimeError("CUDA error: an illegal access"))
    world.run(shares_of(4, 3, 3), tmp_path)
    for rank in world.ranks[2:4]:
        assert isinstance(rank.error, ReplicaError) and "cannot go on: RuntimeError: CUDA error" in str(rank.error)
    assert not any(rank.error for rank in world.ranks[:2] + world.ranks[4:])
    assert counted(world) == Counter({*range(24)} - {9, 10, 11})


def test_images_that_are_too_few_are_no_result(tmp_path: Path) -> None:
    world = World(1)
    world.ranks[0].backend.gives_images = False
    world.run(shares_of(1, 2), tmp_path)
    assert isinstance(world.ranks[0].error, ReplicaError) and "returned 0 images for 2 prompts" in str(
        world.ranks[0].error
    )


def test_ranks_of_a_replica_with_different_batches_stop_before_the_first(tmp_path: Path) -> None:
    world = World(4, replica_size=2)
    mine, other = batches_of(2), batches_of(2, first=7)
    world.ranks[1].batches = other
    world.run([mine, batches_of(2, first=20)], tmp_path)
    for rank in world.ranks[:2]:
        assert isinstance(rank.error, ReplicaError) and "Ranks [0, 1] of one replica were about to run" in str(
            rank.error
        )
        assert rank.backend.calls == []
    assert counted(world) == Counter([20, 21]), "the other replica is not concerned"


def test_a_users_mistake_that_shows_only_at_the_server_ends_in_order(tmp_path: Path) -> None:
    world = World(2)
    raising(world.ranks[1], lambda batch: batch.tasks[0].index == 6, UserError("the key is not valid"))
    world.run(shares_of(2, 2, 2, 2), tmp_path)
    reports = world.ranks[0].collector.sink.reports  # type: ignore[union-attr]
    assert isinstance(reports[1].error, UserError) and reports[0].error is None
    assert counted(world) == Counter(range(6)), "what was made before arrived"


# -- stopping -----------------------------------------------------------------------------------------------------


def test_a_signal_on_one_rank_drains_all(tmp_path: Path) -> None:
    """Through the answers: rank 5 hears of it with its last word, rank 0 lets the others know."""
    world = World(8)
    go = threading.Event()

    def wait_for_the_signal(batch: Batch) -> None:
        go.wait(10)

    for rank in world.ranks:
        rank.backend.trouble = wait_for_the_signal

    def stop_then_go(batch: Batch) -> None:
        world.ranks[5].watch.stop.set()
        go.set()

    world.ranks[5].backend.trouble = stop_then_go
    world.run(shares_of(8, *[1] * 200), tmp_path)
    reports = world.ranks[0].collector.sink.reports  # type: ignore[union-attr]
    assert all(report.drained for report in reports.values())
    assert len(world.ranks[5].backend.calls) == 1
    made = sum(len(rank.backend.calls) for rank in world.ranks)
    assert sum(counted(world).values()) == made < 1600, "what was under way is delivered, nothing new is begun"


def test_the_ranks_of_a_replica_leave_at_the_same_batch(tmp_path: Path) -> None:
    world = World(8, replica_size=4)

    def stop_at_the_second(batch: Batch) -> None:
        if batch.tasks[0].index == 2:
            world.ranks[1].watch.stop.set()

    world.ranks[1].backend.trouble = stop_at_the_second
    world.run(shares_of(2, *[2] * 5), tmp_path)
    assert {len(rank.backend.calls) for rank in world.ranks[:4]} == {2}


def test_a_batch_that_is_left_in_the_middle_is_not_delivered(tmp_path: Path) -> None:
    world = World(1)
    raising(world.ranks[0], lambda batch: batch.tasks[0].index == 1, Drained())
    world.run(shares_of(1, 1, 1, 1), tmp_path)
    assert counted(world) == Counter([0])
    assert world.ranks[0].collector.sink.reports[0].drained  # type: ignore[union-attr]


def test_a_slot_that_was_not_asked_for_stays_pending(tmp_path: Path) -> None:
    world = World(1)
    world.ranks[0].backend.trouble = lambda batch: {1: None}
    world.run(shares_of(1, 3, 3), tmp_path)
    assert counted(world) == Counter([0, 2]), "no further batch is begun"
    assert world.ranks[0].collector.sink.reports[0].drained  # type: ignore[union-attr]


def test_threads_that_wait_for_a_server_are_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "LAST_BATCHES_S", {True: 0.3, False: 0.3})
    world = World(1)
    answered = threading.Event()

    def never_answers(batch: Batch) -> None:
        world.ranks[0].watch.stop.set()
        answered.wait(20)

    world.ranks[0].backend.trouble = never_answers
    world.run(shares_of(1, *[1] * 9), tmp_path, workers=3)
    answered.set()
    report = world.ranks[0].collector.sink.reports[0]  # type: ignore[union-attr]
    assert report.drained and any("had no answer in time" in event for event in report.events)


# -- a writer that can take no more -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_stops_all(tmp_path: Path, mode: str) -> None:
    world = World(8, mode=mode, node_size=4)
    full_for = 4 if mode == "node" else 6 if mode == "rank" else 0
    written: list[object] = []

    def write(rank: Rank, result: Result) -> None:
        if rank.topology.rank == full_for and len(rank.written) >= 3:
            raise OutputError("No space left on device")
        written.append(result.record["index"])

    world.run(shares_of(8, *[1] * 300), tmp_path, write)
    sink = world.ranks[0].collector.sink  # type: ignore[union-attr]
    errors = [sink.error, *(report.error for report in sink.reports.values())]
    assert any(isinstance(error, OutputError) for error in errors)
    assert not any(rank.error for rank in world.ranks), "all end in order"
    assert max(Counter(written).values()) == 1
    assert sum(len(rank.backend.calls) for rank in world.ranks) < 2400, "nobody goes on computing for a full disk"
    if mode == "main":
        assert len(written) == 3, "nothing is written after the first that failed"


def test_whatever_a_writer_raises_ends_the_run(tmp_path: Path) -> None:
    world = World(2)

    def write(rank: Rank, result: Result) -> None:
        raise UnicodeEncodeError("utf-8", "x", 0, 1, "surrogates not allowed")

    world.run(shares_of(2, 1, 1, 1), tmp_path, write)
    error = world.ranks[0].collector.sink.error  # type: ignore[union-attr]
    assert isinstance(error, OutputError) and "could not be written: UnicodeEncodeError" in str(error)
