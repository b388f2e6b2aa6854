"""A table of prompts that comes out of a pipe: rank 0 reads it once, the others have it from there, and it is kept.

What was read lies in the output folder (.dglaunch.prompts). A start that torchrun or Slurm repeats takes it from there, as
its pipe is empty by then, and so does one whose pipe gives nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dglaunch.config import RunConfig
from dglaunch.data.tables import read_pipe, shown
from dglaunch.distributed import store
from dglaunch.distributed.channel import MODEL_TIMEOUT
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.files import MOST_STREAM, is_regular, is_stream, read_bytes
from dglaunch.output.ledger import OutputFolder


@dataclass(frozen=True, slots=True)
class Piped:
    """What came out of the pipe that --prompts_file names, or a list of photographs (photos.py)."""

    data: bytes
    reasons: dict[str, str]
    """Where it was taken from, if not from the pipe, as rank 0 reports it."""


def piped_table(config: RunConfig, topology: Topology) -> Piped | None:
    """Return what all ranks are to read in place of a pipe; None where --prompts_file is none.

    Raises:
        UserError: it cannot be read, or these ranks have no store by which rank 0 could hand it on.
        LostPeer: rank 0 has died.
    """
    if config.edits or not any(map(is_stream, config.tables)):
        return None
    if len(config.tables) > 1:
        raise UserError(
            f"--prompts_file {shown(config.tables)}: what comes out of a pipe is a table of its own. Name it alone, or save it "
            "to a file first."
        )
    path = config.tables[0]
    reasons: dict[str, str] = {}

    def read() -> bytes:
        kept = OutputFolder(config.output_dir).kept_prompts(topology.ledger_suffix[0])
        data = b"" if topology.restarted and is_regular(kept) else read_pipe(path)
        if data.strip() or not is_regular(kept):
            return data
        reasons["prompts_file"] = f"as {path} gave them to an earlier start ({kept.name}); it gives nothing now"
        return read_bytes(kept, MOST_STREAM)

    if topology.world_size > 1 and topology.distributed and topology.rendezvous is None:
        raise UserError(
            f"{path} can be read once, and these {topology.world_size} ranks have no store of torchrun's to hand it on. "
            "Save the prompts to a file first, and name that."
        )
    return Piped(on_all_ranks(topology, read), reasons)


def on_all_ranks(topology: Topology, read: Callable[[], bytes]) -> bytes:
    """Return what rank 0 reads, on every rank; ranks without a store of torchrun's each read it for themselves.

    Raises:
        UserError: it cannot be read.
        LostPeer: rank 0 has died.
    """
    if topology.world_size == 1 or not topology.distributed or topology.rendezvous is None:
        return read()
    return store.hand_on(topology, read, MODEL_TIMEOUT)
