"""What a job asks of its nodes beside their GPUs: memory of the host while the weights are read, and the copy of --stage_to."""

import math
from dataclasses import dataclass
from pathlib import Path

from dglaunch.errors import UserError
from dglaunch.models.checkpoint import DTYPE_BYTES
from dglaunch.models.figures import DENOISERS
from dglaunch.models.staging import Staging
from dglaunch.planning.job import Job
from dglaunch.planning.speed import Span

USUAL_RANKS = 8
"""Ranks on a node, where the nodes are not here and there are more."""
COPIED = (0.5e9, 2e9)
"""Bytes a second that one reader copies from a shared file system to a local disk: an NFS server, a parallel file system."""


@dataclass(frozen=True, slots=True)
class Host:
    """What one node holds."""

    a_rank: int
    """Bytes that a rank's process holds at most, while it reads weights that then go to its GPU."""
    num_ranks: int
    at_once: int
    """Ranks of a node that hold so much at the same time: with --shard the ranks of a replica load the text encoders in turn."""
    others: int
    """Bytes that each of the other ranks holds meanwhile."""
    copied: int | None
    """Bytes of the node's own copy; None without --stage_to."""

    @property
    def a_node(self) -> int:
        """Bytes that the ranks of a node hold together."""
        return self.at_once * self.a_rank + (self.num_ranks - self.at_once) * self.others

    @property
    def copying(self) -> Span:
        """Seconds until the copy is there."""
        slow, fast = COPIED
        return Span((self.copied or 0) / fast, (self.copied or 0) / slow)


def host_of(job: Job) -> Host | None:
    """Return what a local model asks of a node; None where its weights are not known."""
    if not job.profile.has_estimates or not job.checkpoint.parameters:
        return None
    parts = {name: count * DTYPE_BYTES[job.machine.dtype] for name, count in job.checkpoint.parameters.items()}
    encoders = sum(size for name, size in parts.items() if name.startswith("text_encoder"))
    stage_to, num_ranks = job.config.backend.stage_to, min(job.topology.local_world_size, USUAL_RANKS)
    copied = None if stage_to is None else _copied(job, stage_to, sum(parts.values()))
    if job.config.backend.shard is not None:
        # Each rank reads its part of the transformer, a weight at a time, straight onto its GPU.
        whole = sum(size for name, size in parts.items() if not name.startswith((*DENOISERS, "text_encoder")))
        at_once = math.ceil(num_ranks / job.topology.replica_size)
        return Host(encoders + whole, num_ranks, at_once, others=whole, copied=copied)
    others = sum(parts.values()) - encoders
    ahead = job.checkpoint.encodes_ahead(job.config.optimization.encode)
    a_rank = max(encoders, others) if ahead else encoders + others
    return Host(a_rank, num_ranks, at_once=num_ranks, others=others, copied=copied)


def _copied(job: Job, stage_to: Path, otherwise: int) -> int:
    """From the files where they are here; else as many bytes as the weights have in the type of the run."""
    try:
        return Staging(job.checkpoint.folder, stage_to).num_bytes
    except (UserError, OSError):
        return otherwise
