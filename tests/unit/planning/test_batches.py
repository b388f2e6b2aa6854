"""Shards and batches: pure functions on grids of worlds, batch sizes and shapes. Topology: arithmetic on degrees."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dglaunch import ParallelConfig, T2IConfig
from dglaunch.config import BackendConfig, WriterName
from dglaunch.data.task import BatchSize, Bucket, Task, plain_bucket
from dglaunch.distributed.topology import Topology, from_environment
from dglaunch.errors import UserError
from dglaunch.models.checkpoint import Checkpoint
from dglaunch.models.families import OTHER
from dglaunch.planning.batches import build, share_of_node
from dglaunch.planning.estimate import TAKEN_IN_MPIXELS, bottleneck


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


def environ(rank: int, world: int, nodes: int = 1, node: int = 0) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
            "GROUP_WORLD_SIZE": str(nodes), "GROUP_RANK": str(node)}  # fmt: skip


XDIT = T2IConfig(prompt="x", backend=BackendConfig(backend="xdit"))


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("ulysses", [1, 2, 4])
@pytest.mark.parametrize("cfg", [False, True])
def test_replicas_are_neighbours_and_cover_the_world(world: int, ulysses: int, cfg: bool) -> None:
    parallel = ParallelConfig(ulysses_degree=ulysses, use_cfg_parallel=cfg)
    size = ulysses * (2 if cfg else 1)
    if world % size:
        with pytest.raises(UserError, match=f"= {size}, which does not divide the world size {world}"):
            from_environment(XDIT, parallel, environ(0, world))
        return
    ranks = [from_environment(XDIT, parallel, environ(rank, world)) for rank in range(world)]
    assert [place.replica for place in ranks] == [rank // size for rank in range(world)]
    assert [place.rank for place in ranks if place.is_leader] == ranks[0].leaders == list(range(size - 1, world, size))


@pytest.mark.parametrize("ulysses", [1, 2, 8])
@pytest.mark.parametrize("mode", ["main", "node", "rank"])
def test_every_leader_has_one_writer_that_waits_for_it(ulysses: int, mode: WriterName) -> None:
    """On three nodes of four ranks; with Ulysses 8 a replica spans two nodes. Rank 0 is told of everything."""
    world = 24 if ulysses == 8 else 12
    config = T2IConfig(prompt="x", backend=BackendConfig(backend="xdit"), writer=mode)
    variables = [environ(rank, world) | {"LOCAL_RANK": str(rank % 4), "LOCAL_WORLD_SIZE": "4"} for rank in range(world)]
    ranks = [from_environment(config, ParallelConfig(ulysses_degree=ulysses), each) for each in variables]
    leaders = [place for place in ranks if place.is_leader]
    assert ranks[0].receives_from == [place.rank for place in leaders if place.rank]
    for place in leaders:
        writer = ranks[place.writer]
        assert writer.writes and (writer is place or place.rank in writer.receives_from)
        assert mode == "main" or writer.rank // 4 == place.rank // 4
    writers = {place.writer for place in leaders}
    assert {place.rank for place in ranks if place.writes} == writers | {0}
    assert len({place.ledger_suffix for place in ranks if place.writes}) == len(writers | {0})
    per_node = {place.rank // 4 for place in leaders}
    assert len(writers) == {"main": 1, "node": len(per_node), "rank": len(leaders)}[mode]


def test_plan_says_when_rank_0_cannot_take_in_what_is_made() -> None:
    plan = build(tasks([1] * 100), 8, lambda _: BatchSize(1, ""))
    pixels = 100 * 64 * 64 / 1e6
    enough, too_little = pixels / TAKEN_IN_MPIXELS * 1.1, pixels / TAKEN_IN_MPIXELS / 3
    checkpoint = Checkpoint("fake", "fake", OTHER, {"height": 64, "width": 64}, {}, False)
    place = Topology(world_size=8)
    assert bottleneck(checkpoint, place, plan, enough) is None
    assert "3.0 times what one rank 0 was measured" in (bottleneck(checkpoint, place, plan, too_little) or "")
    assert bottleneck(checkpoint, Topology(world_size=8, mode="rank"), plan, too_little) is None


def test_a_product_that_is_not_the_world_says_what_would_be() -> None:
    with pytest.raises(UserError, match=r"ulysses 2 .* data 3 = 6, which is not the world size 8.*set it to 4"):
        from_environment(XDIT, ParallelConfig(ulysses_degree=2, data_parallel_degree=3), environ(0, 8))


def test_two_ways_to_share_over_nodes_are_not_both_applied() -> None:
    config = T2IConfig(prompt="x", node_rank=1, num_nodes=2)
    alone = from_environment(config, ParallelConfig(), environ(0, 8))
    assert (alone.node, alone.num_nodes) == (1, 2)
    agreeing = from_environment(config, ParallelConfig(), environ(8, 16, nodes=2, node=1))
    assert (agreeing.node, agreeing.num_nodes) == (0, 1)
    with pytest.raises(UserError, match="prompts lost or made twice"):
        from_environment(config, ParallelConfig(), environ(0, 16, nodes=2, node=0))


def test_degrees_without_xdit_are_an_error() -> None:
    with pytest.raises(UserError, match="each rank is a replica"):
        from_environment(T2IConfig(prompt="x"), ParallelConfig(ulysses_degree=2), environ(0, 2))
