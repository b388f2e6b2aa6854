"""--output_dir in an object store: that it can be written is seen, and the run gets a working folder in its place (output/far.py)."""

import os
from dataclasses import replace
from typing import TypeVar

from dglaunch.addresses import Address
from dglaunch.config import RunConfig
from dglaunch.distributed.topology import Topology
from dglaunch.errors import UserError
from dglaunch.output.far import far_of
from dglaunch.output.far_leases import PROBE
from dglaunch.output.far_shards import PIECE_S
from dglaunch.storage.uploads import MOST_BYTES, MOST_OBJECTS
from dglaunch.storage.working import working_folder

Config = TypeVar("Config", bound=RunConfig)


def with_working_folder(config: Config, topology: Topology, only_planned: bool) -> Config:
    """Return a configuration whose output folder is on this machine: with what is there already, on rank 0.

    Args:
        only_planned: nothing will be written.

    Raises:
        UserError: it cannot be written.
    """
    address = config.output_dir
    if not isinstance(address, Address):
        return config
    try:
        folder = working_folder(address, config.backend.cache)
        far = far_of(folder)
        assert far is not None, "it was made just now"
        if topology.is_main:
            if not only_planned:
                far.store.check_writable(f"{PROBE}{topology.ledger_suffix[0]}", os.urandom(8))
            far.pull()
    except OSError as error:
        raise UserError(f"--output_dir {address} cannot be read: {error.strerror or error}.") from None
    return replace(config, output_dir=folder)


def most_lost(is_paid: bool) -> str:
    """Return what of a job in shards the loss of a machine costs at most, as a part of a sentence.

    Args:
        is_paid: whether the images are paid for: each is put before the next is asked for.
    """
    if is_paid:
        return "no image that is paid for is lost with the machine, beyond requests without an answer"
    return (
        f"with the machine go the images of the last {PIECE_S:.0f} s and those on their way, at most {MOST_OBJECTS} pieces or "
        f"{MOST_BYTES >> 20} MiB of each writer"
    )
