"""Who am I: replicas, leaders and writers of any world, and degrees that do not fit. Pure arithmetic."""

from typing import Any

import pytest

from dglaunch import ParallelConfig, T2IConfig
from dglaunch.config import BackendConfig, WriterName
from dglaunch.distributed.agent import Agent
from dglaunch.distributed.topology import UnfitWorld, from_environment
from dglaunch.errors import UserError


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


@pytest.mark.parametrize(("flags", "degrees"), [
    ({"shard": "fsdp"}, {"shard_degree": 4}),
    ({"parallel": "context"}, {"context_degree": 4}),
    ({"shard": "fsdp", "parallel": "context"}, {"shard_degree": 4, "context_degree": 4}),
])  # fmt: skip
def test_ranks_that_share_a_model_are_a_replica(flags: dict[str, Any], degrees: dict[str, Any]) -> None:
    config = T2IConfig(prompt="x", backend=BackendConfig(**flags))
    ranks = [from_environment(config, ParallelConfig(**degrees), environ(rank, 8)) for rank in range(8)]
    assert [place.replica for place in ranks] == [0] * 4 + [1] * 4 and ranks[0].leaders == [3, 7]
    assert ranks[0].sequence_degree == degrees.get("context_degree", 1)


# -- worlds that change -------------------------------------------------------------------------------------------


def _elastic(monkeypatch: pytest.MonkeyPatch, nodes: tuple[int, int] | None) -> None:
    agent = Agent(1, "a", nodes)
    monkeypatch.setattr("dglaunch.distributed.topology.agent_of", lambda environ: agent)


@pytest.mark.parametrize(
    ("nodes", "ulysses", "data", "may_change"),
    [((2, 4), 4, None, True), ((2, 3), 4, None, False), (None, 4, None, False), ((1, 4), 5, None, False),
     ((1, 4), 1, 8, True), ((1, 4), 1, 7, False)],
)  # fmt: skip
def test_a_world_that_does_not_fit_may_be_waited_for(
    nodes: tuple[int, int] | None, ulysses: int, data: int | None, may_change: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three nodes of two ranks."""
    _elastic(monkeypatch, nodes)
    parallel = ParallelConfig(ulysses_degree=ulysses, data_parallel_degree=data)
    with pytest.raises(UnfitWorld) as unfit:
        from_environment(XDIT, parallel, environ(0, 6, nodes=3) | {"LOCAL_WORLD_SIZE": "2"})
    assert unfit.value.may_change == may_change


def test_nodes_that_come_and_go_need_a_store_of_each_world(monkeypatch: pytest.MonkeyPatch) -> None:
    place = environ(0, 2) | {"MASTER_ADDR": "x", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    _elastic(monkeypatch, (1, 4))
    with pytest.raises(UserError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun"):
        from_environment(T2IConfig(prompt="x"), ParallelConfig(), place)
    from_environment(T2IConfig(prompt="x"), ParallelConfig(), place | {"TORCHELASTIC_USE_AGENT_STORE": "False"})
    _elastic(monkeypatch, None)
    from_environment(T2IConfig(prompt="x"), ParallelConfig(), place)
