"""torchrun's agent: the process that has started this rank, which outlives it where torchrun forms a world anew.

    agent = agent_of(os.environ)        # None without torchrun, or where the system does not tell
    agent.identity                      # the same for every rank that it ever starts
    agent.nodes                         # (1, 4) under --nnodes 1:4

With --nnodes 1:4 the ranks of all nodes are started anew whenever a node joins or dies. TORCHELASTIC_RESTART_COUNT says
nothing of it: a node that joins makes no agent count, and its own agent begins at 0. What a world has in common with the one
before is one of its agents at least: that which holds the rendezvous.
"""

import hashlib
import os
import re
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dglaunch.errors import EXIT_ITEMS_FAILED, EXIT_USER

RUN_ID = "TORCHELASTIC_RUN_ID"
NODES = "PET_NNODES"
"""In its place torchrun also takes this variable for --nnodes."""
_PROCESSES = Path("/proc")
_SPAN = re.compile(r"(\d{1,6}):(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Agent:
    """An Agent is one process of torchrun's, on this machine."""

    pid: int
    identity: str
    """Of this process, among all machines and times."""
    nodes: tuple[int, int] | None = None
    """The fewest and the most nodes of a world, where --nnodes leaves it open."""


def agent_of(environ: Mapping[str, str]) -> Agent | None:
    """Return the agent that has started this process, directly or through a script of the user's."""
    run_id = environ.get(RUN_ID)
    if run_id is None:
        return None
    try:
        pid = os.getppid()
        while _was_started_by_an_agent(pid):
            pid = int(_stat(pid)[1])
        told = [run_id, socket.gethostname(), _boot(), str(pid), _stat(pid)[19]]
        words = (_PROCESSES / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except (OSError, ValueError, IndexError):  # no such system, or another user's process
        return None
    return Agent(pid, hashlib.sha256(" ".join(told).encode()).hexdigest()[:16], span_of(words, environ))


def end_restarts(code: int, environ: Mapping[str, str]) -> None:
    """Let an agent that would start ranks again, and has many starts left for nodes that are lost, start none where the command
    or its input is wrong, or all that could be made is made."""
    if code not in (EXIT_USER, EXIT_ITEMS_FAILED) or environ.get("LOCAL_RANK") != "0":
        return
    agent = agent_of(environ)
    if agent is not None and agent.nodes is not None:
        os.kill(agent.pid, signal.SIGTERM)


def span_of(words: Sequence[str], environ: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the fewest and the most nodes, if torchrun's command line (or its variable) names two numbers."""
    given = environ.get(NODES, "")
    for word, following in zip(words, [*words[1:], ""]):
        name, sign, value = word.partition("=")
        if name.replace("_", "-") == "--nnodes":
            given = value if sign else following
    match = _SPAN.fullmatch(given)
    return (int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


def _was_started_by_an_agent(pid: int) -> bool:
    variables = (_PROCESSES / str(pid) / "environ").read_bytes().split(b"\0")
    return any(variable.startswith(f"{RUN_ID}=".encode()) for variable in variables)


def _stat(pid: int) -> list[str]:
    """What the system says of a process, from its state on; its name, which may have blanks, stands before."""
    return (_PROCESSES / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _boot() -> str:
    return (_PROCESSES / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
