"""Shares of independent nodes (--node_rank, --num_nodes) that no one has taken, as where an element of a job array never ran."""

from collections.abc import Iterable
from dataclasses import dataclass

from dglaunch.data.task import Record
from dglaunch.output.ledger import object_at

MOST_NODES = 1 << 16


@dataclass(frozen=True, slots=True)
class Holes:
    """The nodes of which there is no run."""

    node_ranks: tuple[int, ...]
    num_nodes: int
    like: Record
    """The run.json of one that there is."""


def holes_of(runs: Iterable[Record]) -> Holes | None:
    """Return which nodes have no run among these; None if all have, or they are not one job's shares."""
    found: dict[int, Record] = {}
    counts: set[int] = set()
    for run in runs:
        world = object_at(run, "topology")
        node, num_nodes = world.get("node"), world.get("num_nodes")
        if not isinstance(node, int) or not isinstance(num_nodes, int):
            return None
        found[node] = run
        counts.add(num_nodes)
    of_all = counts.pop() if len(counts) == 1 else 1
    if not 1 < of_all <= MOST_NODES:
        return None
    missing = tuple(node for node in range(of_all) if node not in found)
    return Holes(missing, of_all, next(iter(found.values()))) if missing else None
