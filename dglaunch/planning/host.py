"""What a job asks of its nodes beside their GPUs: memory of the host while the weights are read, and the copy of --stage_to."""

from dataclasses import dataclass
from pathlib import Path

from dglaunch.errors import UserError
from dglaunch.models.checkpoint import DTYPE_BYTES
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
    copied: int | None
    """Bytes of the node's own copy; None without --stage_to."""

    @property
    def copying(self) -> Span:
        """Seconds until the copy is there."""
        slow, fast = COPIED
        return Span((self.copied or 0) / fast, (self.copied or 0) / slow)


def host_of(job: Job) -> Host | None:
    """Return what a local model asks of a node; None where its weights are not known."""
    if not job.profile.has_estimates or not job.checkpoint.parameters:
        return None
    parts, size = job.checkpoint.parameters, DTYPE_BYTES[job.machine.dtype]
    encoders = size * sum(count for name, count in parts.items() if name.startswith("text_encoder"))
    others = size * sum(count for name, count in parts.items() if not name.startswith("text_encoder"))
    stage_to = job.config.backend.stage_to
    ahead = job.checkpoint.encodes_ahead(job.config.optimization.encode)
    return Host(
        a_rank=max(encoders, others) if ahead else encoders + others,
        num_ranks=min(job.topology.local_world_size, USUAL_RANKS),
        copied=None if stage_to is None else _copied(job, stage_to, encoders + others),
    )


def _copied(job: Job, stage_to: Path, otherwise: int) -> int:
    """From the files where they are here; else as many bytes as the weights have in the type of the run."""
    try:
        return Staging(job.checkpoint.folder, stage_to).num_bytes
    except (UserError, OSError):
        return otherwise
