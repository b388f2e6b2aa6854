"""One process as any rank of a world that is not there: collectives return at once, with the right shapes and no values."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch.distributed as dist

from dglaunch.distributed.topology import Topology


@contextmanager
def fake_cluster(topology: Topology) -> Iterator[None]:
    """Let torch.distributed believe in the world of a topology, of which this process is one rank; without torchrun there is
    none.

    Raises:
        RuntimeError: the process is in a real world already.
    """
    if not topology.distributed:
        yield
        return
    import torch.distributed._tools.fake_collectives  # noqa: F401  # c10d's operations on fake tensors
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise RuntimeError("this process has joined a real world, and cannot pretend another")
    new_group = dist.new_group

    def fake_group(ranks: Sequence[int] | None = None, *_args: Any, **_kwargs: Any) -> Any:
        return new_group(ranks, backend="fake")

    dist.init_process_group("fake", store=FakeStore(), rank=topology.rank, world_size=topology.world_size)
    try:
        with mock.patch("torch.distributed.new_group", fake_group):
            yield
    finally:
        if "xfuser" in sys.modules:  # it keeps the world that it was in first
            importlib.import_module("xfuser.core.distributed.parallel_state").destroy_distributed_environment()
        if dist.is_initialized():
            dist.destroy_process_group()
