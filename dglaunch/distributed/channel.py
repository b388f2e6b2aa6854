"""How the ranks of a run talk about the run itself, over gloo. What they say is bytes of `messages`, never a pickle."""

import hashlib
import hmac
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeVar

from dglaunch.distributed import store as stores
from dglaunch.distributed.lifelines import Lifelines, opened_here
from dglaunch.distributed.messages import pack, unpack
from dglaunch.distributed.store import connected
from dglaunch.distributed.topology import RENDEZVOUS, Topology, no_world
from dglaunch.errors import DglaunchError, UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")

CONTROL_TIMEOUT = timedelta(days=7)
"""Of the groups that carry results and the end of the run: replicas may finish hours apart; a dead rank breaks the
connection at once, and torchrun then stops the others."""
MODEL_TIMEOUT = timedelta(minutes=10)
"""Of the groups inside the model: a rank that fails alone must not leave its peers waiting for ever."""
DRAWN_BYTES = 16
"""Of the random number with which each rank begins the handshake."""
_HEADER, _BODY, _ANSWER = 1, 2, 3


class Channel:
    """A Channel is how the ranks of a run talk about the run itself; on one rank without torchrun it is trivial.

    It joins torchrun's world or, in a process that has initialized torch.distributed, takes that one's. Its groups are
    new either way.
    """

    attempt = ""
    """What this process's ranks call their joining of torchrun's store: the same for all runs in one process."""

    def __init__(self, topology: Topology, device: str) -> None:
        self.topology = topology
        self._world: ProcessGroup | None = None
        self._replica: ProcessGroup | None = None
        self._results: ProcessGroup | None = None
        """For the background threads that carry results: a group is used by one thread only."""
        sockets: set[int] = set()
        if topology.distributed:
            with opened_here(sockets):
                self._form_groups(device)
        self.lifelines = Lifelines(sockets)
        """The connections to the other ranks."""

    def _form_groups(self, device: str) -> None:
        topology = self.topology
        import torch.distributed as dist

        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        with connected():
            if not dist.is_initialized():
                self._join(backend)
        self._world = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        self._check_token()
        self._results = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        size = topology.replica_size
        for first in range(0, topology.world_size, size):
            group = dist.new_group(list(range(first, first + size)), backend="gloo", timeout=MODEL_TIMEOUT)
            if topology.rank in range(first, first + size):
                self._replica = group

    def _join(self, backend: str) -> None:
        import torch.distributed as dist

        topology = self.topology
        stores.stay_on_this_machine(topology)
        if topology.rendezvous is None:
            raise no_world(RENDEZVOUS)
        store = stores.connect(topology, MODEL_TIMEOUT)
        Channel.attempt = stores.agree_on_attempt(topology, store, MODEL_TIMEOUT)
        dist.init_process_group(
            backend, store=stores.part(store, Channel.attempt), rank=topology.rank, world_size=topology.world_size,
            timeout=MODEL_TIMEOUT,
        )  # fmt: skip

    def _check_token(self) -> None:
        """The first words between the ranks: each shows that it knows the job's token, without saying it.

        Raises:
            UserError: a rank does not.
        """
        size, token = self.topology.world_size, self.topology.token
        drawn = b"".join(_gather_equal(os.urandom(DRAWN_BYTES), self._world, size))
        proofs = _gather_equal(proof(token, self.topology.rank, drawn), self._world, size)
        wrong = [rank for rank, said in enumerate(proofs) if not hmac.compare_digest(said, proof(token, rank, drawn))]
        if wrong:
            ranks = f"Ranks {', '.join(map(str, wrong))} do" if len(wrong) > 1 else f"Rank {wrong[0]} does"
            raise UserError(
                f"{ranks} not know this job's token: what has joined is another job's process, or DG_JOB_TOKEN (without "
                "it: torchrun's --rdzv_id) is not the same on all machines. Set it alike, and see what else uses this "
                "rendezvous."
            )

    def counters(self, name: str) -> stores.Numbers | None:
        """Numbers that all ranks share, new with each channel; None where there is one replica. All ranks call it."""
        if self._world is None or self.topology.num_replicas == 1:
            return None
        from torch.distributed.distributed_c10d import _get_default_store

        return stores.Numbers(stores.part(_get_default_store(), f"dglaunch/{name}/{self.broadcast(uuid.uuid4().hex)}"))

    # -- all together ---------------------------------------------------------------------------------------------

    def broadcast(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self._world is None:
            return value
        import torch
        import torch.distributed as dist

        body = _as_tensor(pack(value)) if self.topology.is_main else torch.empty(0, dtype=torch.uint8)
        length = torch.tensor([body.numel()])
        with connected():
            dist.broadcast(length, src=0, group=self._world)
            if not self.topology.is_main:
                body = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(body, src=0, group=self._world)
        said: Value = value if self.topology.is_main else unpack(body.numpy().tobytes())
        return said

    def all_of_world(self, value: Value) -> list[Value]:
        """The values of all ranks, in the order of ranks, on every rank."""
        return self._all(value, self._world, self.topology.world_size)

    def together(self, action: Callable[[], Value], of: Literal["world", "replica"] = "world") -> Value:
        """What the action gives on this rank, once all ranks (of the world, or of this rank's replica) have done it; if it
        fails on one, all of them raise.

        Raises:
            UserError: that of the first rank that has one, so that rank 0 reports it.
            DglaunchError: on the other ranks, for another failure.
        """
        tell, first = self.all_of_world, 0
        if of == "replica":
            tell, first = self.all_of_replica, self.topology.replica_ranks[0]
        try:
            result = action()
        except Exception as error:  # whatever it is: the others wait for this rank's word
            tell(_as_message(error))
            raise
        no_failure: UserError | str | None = None
        for rank, failure in enumerate(tell(no_failure), first):
            if isinstance(failure, UserError):
                raise failure
            if failure is not None:
                raise DglaunchError(f"Rank {rank} failed: {failure}")
        return result

    def all_of_replica(self, value: Value) -> list[Value]:
        """The values of the ranks that compute with this one; costs nothing where a replica is one rank."""
        return self._all(value, self._replica, self.topology.replica_size)

    def any_of_replica(self, flag: bool) -> bool:
        """Whether any rank that computes with this one says yes; cheap enough to ask between denoising steps."""
        if self._replica is None or self.topology.replica_size == 1:
            return flag
        import torch
        import torch.distributed as dist

        box = torch.tensor([int(flag)])
        with connected():
            dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self._replica)
        return bool(box)

    def _all(self, value: Value, group: "ProcessGroup | None", size: int) -> list[Value]:
        if group is None or size == 1:
            return [value]
        return [unpack(body) for body in _gather(pack(value), group, size)]

    # -- from one to another, in threads of their own -------------------------------------------------------------
    # A dead rank shows as gloo's RuntimeError here: whose thread it is says what that means.

    def send(self, body: bytes, rank: int) -> int:
        """Send to another rank that is in `receive`, and wait for its answer."""
        import torch
        import torch.distributed as dist

        tensor = _as_tensor(body)
        dist.send(torch.tensor([tensor.numel()]), dst=rank, group=self._results, tag=_HEADER)
        dist.send(tensor, dst=rank, group=self._results, tag=_BODY)
        answer = torch.zeros(1, dtype=torch.int64)
        dist.recv(answer, src=rank, group=self._results, tag=_ANSWER)
        return int(answer)

    def receive(self) -> tuple[int, bytes]:
        """The rank and the bytes of whoever sends next; `answer` must follow."""
        import torch
        import torch.distributed as dist

        header = torch.zeros(1, dtype=torch.int64)
        source = dist.recv(header, group=self._results, tag=_HEADER)
        body = torch.empty(int(header), dtype=torch.uint8)
        dist.recv(body, src=source, group=self._results, tag=_BODY)
        return source, body.numpy().tobytes()

    def answer(self, rank: int, word: int) -> None:
        """Let the sender of what was received go on."""
        import torch
        import torch.distributed as dist

        dist.send(torch.tensor([word]), dst=rank, group=self._results, tag=_ANSWER)


def proof(token: str, rank: int, drawn: bytes) -> bytes:
    """What a rank shows of the job's token, for the numbers that all ranks have drawn: of use to no other rank, nor later."""
    return hmac.digest(token.encode(errors="surrogatepass"), rank.to_bytes(8) + drawn, hashlib.sha256)


def _as_tensor(body: bytes) -> "torch.Tensor":
    import torch

    return torch.frombuffer(bytearray(body), dtype=torch.uint8)


def _gather(body: bytes, group: "ProcessGroup | None", size: int) -> list[bytes]:
    """The bytes of all ranks of a group, in the order of ranks, on every rank."""
    lengths = [int.from_bytes(length) for length in _gather_equal(len(body).to_bytes(8), group, size)]
    padded = _gather_equal(body.ljust(max(lengths), b"\0"), group, size) if any(lengths) else [b""] * size
    return [part[:length] for part, length in zip(padded, lengths)]


def _gather_equal(body: bytes, group: "ProcessGroup | None", size: int) -> list[bytes]:
    """The same where all have equally many."""
    import torch
    import torch.distributed as dist

    bodies = [torch.empty(len(body), dtype=torch.uint8) for _ in range(size)]
    with connected():
        dist.all_gather(bodies, _as_tensor(body), group=group)
    return [part.numpy().tobytes() for part in bodies]


def _as_message(error: Exception) -> UserError | str:
    return error if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def variables_of_world() -> dict[str, str]:
    """The world of a process that has initialized torch.distributed by itself, as torchrun's variables; else nothing.

    All ranks must call it: those of one machine find each other by its name, in the order of their ranks.
    """
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return {}
    import platform

    rank, world_size = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    hosts = [host.decode(errors="replace") for host in _gather(platform.node().encode(), group, world_size)]
    numbers = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": hosts[:rank].count(hosts[rank])}
    numbers["LOCAL_WORLD_SIZE"] = Counter(hosts)[hosts[rank]]
    return {name: str(number) for name, number in numbers.items()}


def leave() -> None:
    """Leave the world at the end of the process. Not at the end of a run: torchrun's store lets no process join twice."""
    if (dist := sys.modules.get("torch.distributed")) is not None and dist.is_initialized():
        dist.destroy_process_group()
