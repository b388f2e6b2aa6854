"""What `status` and `merge` say of the shares of independent nodes that no one has taken, with the command that takes one."""

import os
import shlex

from dglaunch.cli.flags import without
from dglaunch.config import COMMANDS, TRUST, flags_that
from dglaunch.errors import UserError
from dglaunch.output.holes import Holes
from dglaunch.output.ledger import object_at

SHOWN = 12


def describe(holes: Holes) -> str:
    """Return which shares are missing, and what makes them."""
    ranks = [str(rank) for rank in holes.node_ranks[:SHOWN]]
    many, more = len(holes.node_ranks) > 1, " ..." if len(holes.node_ranks) > SHOWN else ""
    said = (
        f"No one has taken the share{'s' * many} of --node_rank {', '.join(ranks)}{more} of --num_nodes {holes.num_nodes}; a job "
        f"array takes {'them' if many else 'it'} with sbatch --array={','.join(ranks)}, and a machine"
    )
    command = command_for(holes, holes.node_ranks[0])
    if command is None:
        return f"{said} with the job's own command and --node_rank {ranks[0]} --num_nodes {holes.num_nodes}."
    return f"{said} with: {command}"


def command_for(holes: Holes, node_rank: int) -> str | None:
    """Return the command that makes the share of a node, as that of a node that there is; None where that one is not told, or
    must not be taken from a file: it lets code run, or says where data goes."""
    told = holes.like.get("command")
    if not isinstance(told, list) or len(told) < 2 or not all(isinstance(word, str) for word in told):
        return None
    trusting = {name for config in COMMANDS.values() for name in flags_that(TRUST, config)}
    try:
        words = without(told[1:], "node_rank", "num_nodes")
        if without(words, *trusting) != words:
            return None
    except UserError:
        return None
    words += ["--node_rank", str(node_rank), "--num_nodes", str(holes.num_nodes)]
    return _where(holes) + _ranks(holes) + shlex.join(["dglaunch", *words])


def _ranks(holes: Holes) -> str:
    """As many as that node had."""
    ranks = object_at(holes.like, "topology").get("world_size")
    return f"torchrun --nproc_per_node {ranks} -m " if isinstance(ranks, int) and ranks > 1 else ""


def _where(holes: Holes) -> str:
    """The folder that its paths are relative to, if it is another one."""
    folder = holes.like.get("working_directory")
    return "" if not isinstance(folder, str) or folder == os.getcwd() else f"cd {shlex.quote(folder)} && "
