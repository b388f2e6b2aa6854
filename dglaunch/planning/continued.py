"""Does this start go on with what the same torchrun began? Then --overwrite removes nothing, and a pipe is not read again.

run.json names the agents of the world that wrote it. torchrun's own count of restarts does not say it where a node joined or
came back (distributed/agent.py).
"""

import hashlib

from dglaunch.config import RunConfig
from dglaunch.data.task import Record
from dglaunch.distributed import store
from dglaunch.distributed.channel import MODEL_TIMEOUT, Channel
from dglaunch.distributed.topology import Topology
from dglaunch.output.ledger import OutputFolder, object_at


def goes_on(config: RunConfig, topology: Topology) -> bool:
    """Return whether an agent of any of these ranks has begun this job, the same on all of them.

    Raises:
        LostPeer: a rank has died.
    """
    if topology.restarted or topology.agent is None:
        here = topology.restarted
    else:
        runs = OutputFolder(config.output_dir).all_runs().values()
        here = any(_was_there(topology.agent.identity, run) for run in runs)
    if topology.is_one_machine or topology.rendezvous is None:
        return here
    return store.any_rank(topology, here, MODEL_TIMEOUT)


def world_record(agents: list[str]) -> Record:
    """Return what run.json says of the world that writes it, for `goes_on`.

    Args:
        agents: the identity of each rank's agent, or "".
    """
    named = sorted({agent for agent in agents if agent})
    return {"agents": named, "attempt": _attempt()} if named else {}


def _was_there(agent: str, run: Record) -> bool:
    """Whether the agent's ranks wrote this run.json: not those of this very process, which may make several runs."""
    world = object_at(run, "topology")
    agents = world.get("agents")
    return isinstance(agents, list) and agent in agents and world.get("attempt") != _attempt()


def _attempt() -> str:
    """Of this process's joining; not the name itself, by which it is found in torchrun's store."""
    return hashlib.sha256(Channel.attempt.encode()).hexdigest()[:16]
