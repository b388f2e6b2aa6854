"""What an output folder says of how an earlier start of the job understood the columns of its table.

Rank 0 looks, and the others have it from there: the folder may be on its machine only, and all ranks must understand the
table alike.
"""

from dglaunch.config import RunConfig
from dglaunch.data.columns import Past
from dglaunch.data.task import Record
from dglaunch.distributed.topology import Topology
from dglaunch.output.ledger import OutputFolder, object_at
from dglaunch.planning.pipe import on_all_ranks


def past_of(config: RunConfig, topology: Topology) -> Past:
    """Return what all ranks are to take for this job's past.

    Raises:
        LostPeer: rank 0 has died.
    """

    def look() -> bytes:
        return _past_in(OutputFolder(config.output_dir), config.overwrite and not topology.restarted).value.encode()

    return Past(on_all_ranks(topology, look).decode())


def _past_in(folder: OutputFolder, anew: bool) -> Past:
    has_results = any(ledger.path.stat().st_size for ledger in folder.ledgers())
    if anew or not has_results:
        return Past.NEW
    runs = folder.all_runs()
    return Past.EXACT if not runs or any(map(_knew_exact_names_only, runs.values())) else Past.BEGUN


def _knew_exact_names_only(run: Record) -> bool:
    """Whether that start, or one before it in the same folder, was made by a dglaunch to which `Seed` was no seed."""
    return "columns" not in run or object_at(run, "columns").get("exact_names") is True
