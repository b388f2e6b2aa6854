"""Shards and batches: pure functions on grids of worlds, batch sizes and shapes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dglaunch.data.task import BatchSize, Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology
from dglaunch.planning.batches import build, share_of_node


def tasks(shapes: list[int]) -> list[Task]:
    return [
        Task(index=n, prompt=f"p{n}", seed=n, stem=f"{n:06d}", height=64 * s, width=64) for n, s in enumerate(shapes)
    ]


def lengths(count: int, replicas: int, size: int) -> list[list[int]]:
    plan = build(tasks([1] * count), replicas, lambda _: BatchSize(size, ""))
    return [[len(batch) for batch in share] for share in plan.batches]


def cost(bucket: Bucket) -> float:
    return float(bucket.height or 0)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=80), st.integers(1, 9), st.integers(1, 9))
def test_every_task_once_equal_shapes_and_equal_work(shapes: list[int], replicas: int, size: int) -> None:
    plan = build(tasks(shapes), replicas, lambda _: BatchSize(size, ""), cost=cost)
    batches = [batch for share in plan.batches for batch in share]
    assert sorted(task.index for batch in batches for task in batch.tasks) == list(range(len(shapes)))
    assert all(1 <= len(batch) <= size for batch in batches)
    assert all(len({plain_bucket(task) for task in batch.tasks}) == 1 for batch in batches)
    work = [sum(task.height or 0 for batch in share for task in batch.tasks) for share in plan.batches]
    assert max(work) - min(work) <= 2 * max((64 * s for s in shapes), default=0)


def test_shares_are_cut_into_balanced_batches() -> None:
    assert lengths(9, 1, 8) == [[5, 4]]
    assert sorted(map(sum, lengths(23, 4, 8))) == [5, 6, 6, 6]
    assert all(max(share) - min(share) <= 1 for share in lengths(101, 3, 8))


def test_a_shape_stays_on_one_replica_where_it_can() -> None:
    plan = build(tasks([1, 2, 3, 4] * 4), 4, lambda _: BatchSize(4, ""))
    assert [[len(batch) for batch in share] for share in plan.batches] == [[4]] * 4
    assert plan.num_extra_batches == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 3), max_size=50), st.integers(1, 5), st.sets(st.integers(0, 49)))
def test_nodes_that_start_later_agree_on_who_makes_what(shapes: list[int], nodes: int, done: set[int]) -> None:
    """A node's share is cut from all tasks, so it does not depend on what is done when it starts."""
    everything = tasks(shapes)
    shares = [share_of_node(everything, Topology(node=n, num_nodes=nodes), plain_bucket, cost) for n in range(nodes)]
    assert sorted(task.index for share in shares for task in share) == list(range(len(shapes)))
