"""A world whose ranks make no whole replicas, under torchrun --nnodes 2:4."""

from pathlib import Path

import pytest

from dglaunch.distributed.agent import Agent
from support.commands import dglaunch

WORLD = {
    "RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1",
    "DG_XDIT_ULYSSES_DEGREE": "2",
}  # fmt: skip


@pytest.mark.parametrize("nodes", [(2, 4), (2, 3)])
def test_it_waits_for_another_node_and_then_says_so(
    nodes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("dglaunch.distributed.topology.agent_of", lambda environ: Agent(1, "a", nodes))
    monkeypatch.setattr("dglaunch.cli.jobs.time.sleep", waited.append)
    monkeypatch.setattr("dglaunch.cli.jobs.time.monotonic", lambda: float(len(waited)))
    words = ["t2i", "--backend", "xdit", "--prompt", "a", "--output_dir", tmp_path / "out", "--stall_timeout", "60"]
    ended = dglaunch(*words, **WORLD)
    assert ended.code == 2 and "= 2, which does not divide the world size 3" in ended.output
    assert ("Waiting up to 60 s (--stall_timeout) for another node to join." in ended.output) == (nodes == (2, 4))
    assert len(waited) == (60 if nodes == (2, 4) else 0)
    assert not (tmp_path / "out").exists()
