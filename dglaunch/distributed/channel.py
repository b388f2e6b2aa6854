"""How the ranks of a run talk about the run itself, over gloo."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dglaunch.distributed import store as rendezvous
from dglaunch.errors import DglaunchError, LostPeer, UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
from dglaunch.distributed.topology import Topology

Result = TypeVar("Result")


CONTROL_TIMEOUT = timedelta(days=7)
"""Of the groups that carry results and the end of the run: replicas may finish hours apart; a dead rank breaks the
connection at once, and torchrun then stops the others."""


MODEL_TIMEOUT = timedelta(minutes=10)
"""Of the groups inside the model: a rank that fails alone must not leave its peers waiting for ever."""


class Channel:
    """How the ranks of a run talk about the run itself, over gloo; on one rank without torchrun it is trivial."""

    attempt = ""
    """What this process's ranks call their joining of torchrun's store: the same for all runs in one process."""

    def __init__(self, topology: Topology, device: str) -> None:
        self.topology = topology
        self._world: ProcessGroup | None = None
        self._replica: ProcessGroup | None = None
        self.gather: ProcessGroup | None = None
        """For the background thread that carries results: a group is used by one thread only."""
        if not topology.distributed:
            return
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        with _connected():
            if not dist.is_initialized():
                self._join(backend)
        self._world = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        self.gather = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        size = topology.replica_size
        for first in range(0, topology.world_size, size):
            group = dist.new_group(list(range(first, first + size)), backend="gloo", timeout=MODEL_TIMEOUT)
            if topology.rank in range(first, first + size):
                self._replica = group

    def _join(self, backend: str) -> None:
        import torch.distributed as dist

        place = self.topology
        if place.rendezvous is None:
            dist.init_process_group(backend, timeout=MODEL_TIMEOUT)
            return
        store = rendezvous.connect(place, MODEL_TIMEOUT)
        Channel.attempt = rendezvous.agree_on_attempt(place, store, MODEL_TIMEOUT)
        own = dist.PrefixStore(Channel.attempt, store)
        dist.init_process_group(backend, store=own, rank=place.rank, world_size=place.world_size, timeout=MODEL_TIMEOUT)

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self._world is None:
            return value
        import torch.distributed as dist

        box = [value]
        with _connected():
            dist.broadcast_object_list(box, src=0, group=self._world)
        return box[0]

    def all_of_world(self, value: Any) -> list[Any]:
        """The values of all ranks, in the order of ranks, on every rank."""
        return self._all(value, self._world, self.topology.world_size)

    def together(self, action: Callable[[], Result]) -> Result:
        """What the action gives on this rank, once all ranks have done it; if it fails on one, all of them raise.

        Raises:
            UserError: that of the first rank that has one, so that rank 0 tells it.
            DglaunchError: on the other ranks, for another failure.
        """
        result, failure = None, None
        try:
            result = action()
        except Exception as error:
            failure = error
        told = failure if failure is None or isinstance(failure, UserError) else f"{type(failure).__name__}: {failure}"
        everyone = self.all_of_world(told)
        if failure is not None:
            raise failure
        for rank, other in enumerate(everyone):
            if other is not None:
                raise other if isinstance(other, UserError) else DglaunchError(f"Rank {rank} failed: {other}")
        return result  # type: ignore[return-value]

    def all_of_replica(self, value: Any) -> list[Any]:
        """The values of the ranks that compute with this one; costs nothing where a replica is one rank."""
        return self._all(value, self._replica, self.topology.replica_size)

    def any_of_replica(self, flag: bool) -> bool:
        """Whether any rank that computes with this one says yes; cheap enough to ask between denoising steps."""
        if self._replica is None or self.topology.replica_size == 1:
            return flag
        import torch
        import torch.distributed as dist

        box = torch.tensor([int(flag)])
        with _connected():
            dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._replica)
        return bool(box)

    def _all(self, value: Any, group: "ProcessGroup | None", size: int) -> list[Any]:
        if group is None or size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * size
        with _connected():
            dist.all_gather_object(values, value, group=group)
        return values


@contextmanager
def _connected() -> Iterator[None]:
    """What gloo raises when the process at the other end is gone, as what it means."""
    try:
        yield
    except RuntimeError as error:
        raise LostPeer(f"The connection to the other ranks broke, as one of them has died: {error}") from None


def leave() -> None:
    """At the end of the process. Not at the end of a run: torchrun's store does not let a process join twice."""
    import sys

    if (dist := sys.modules.get("torch.distributed")) is not None and dist.is_initialized():
        dist.destroy_process_group()
