"""Which process is torchrun's agent, and what it is asked for. With a real one: torchrun/test_elastic.py."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from dglaunch.distributed import agent as agents
from dglaunch.distributed.agent import Agent, agent_of, end_restarts, span_of
from support.commands import clean_environment


@pytest.mark.parametrize(
    ("words", "environ", "span"),
    [
        (["torchrun", "--nnodes", "1:4", "-m", "dglaunch"], {}, (1, 4)),
        (["torchrun", "--nnodes=2:16"], {}, (2, 16)),
        (["torchrun"], {"PET_NNODES": "1:4"}, (1, 4)),
        (["torchrun", "--nnodes", "4"], {"PET_NNODES": "1:4"}, None),
        (["torchrun", "--nnodes", "4:4"], {}, None),
        (["torchrun", "--nnodes"], {}, None),
        (["torchrun", "--nproc_per_node", "8"], {}, None),
    ],
)
def test_how_many_nodes(words: list[str], environ: dict[str, str], span: tuple[int, int] | None) -> None:
    assert span_of(words, environ) == span


SAYS = "import os; from dglaunch.distributed.agent import agent_of; print(agent_of(os.environ).identity)"


def test_an_agent_is_the_same_for_all_ranks_it_starts_also_through_a_script() -> None:
    """And not for those of another torchrun, nor without one."""
    environ = clean_environment({"TORCHELASTIC_RUN_ID": "one"})
    if "TORCHELASTIC_RUN_ID" in os.environ:
        pytest.skip("these tests run under torchrun")

    def said(*command: str, **more: str) -> str:
        return subprocess.run(command, env={**environ, **more}, capture_output=True, text=True, check=True).stdout

    here = agent_of({"TORCHELASTIC_RUN_ID": "one"})
    assert here is not None and here.pid == os.getppid()
    rank, through_a_script = said(sys.executable, "-c", SAYS), said("sh", "-c", f"{sys.executable} -c '{SAYS}'; true")
    assert rank == through_a_script != said(sys.executable, "-c", SAYS, TORCHELASTIC_RUN_ID="two")
    assert agent_of({}) is None


@pytest.mark.parametrize(
    ("code", "rank", "nodes", "ends"),
    [(2, "0", (1, 4), True), (3, "0", (1, 4), True), (2, "1", (1, 4), False), (1, "0", (1, 4), False),
     (130, "0", (1, 4), False), (2, "0", None, False)],
)  # fmt: skip
def test_a_mistake_is_not_started_again_and_again(
    code: int, rank: str, nodes: Any, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(agents, "agent_of", lambda environ: Agent(77, "a", nodes))
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    end_restarts(code, {"LOCAL_RANK": rank})
    assert sent == ([(77, signal.SIGTERM)] if ends else [])
