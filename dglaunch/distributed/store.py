"""A part of torchrun's store that belongs to this attempt alone.

torchrun keeps one store over all restarts, and torch 2.13 joins a process group in it under the same names each time:
after --max-restarts brought the ranks back, they read the addresses of dead processes and fail with "Connection
refused". The restart count is no way out, as the agents of several nodes count their own. So rank 0 makes up a name for
each attempt, and hands it out against numbers that each process draws for itself.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from dglaunch.distributed.topology import Topology
from dglaunch.errors import LostPeer, UserError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

POLL_S = 0.02
HEARD_EVERY_S = 5.0
"""A rank that others wait for is heard of so often."""
CONNECT_TIMEOUT = timedelta(seconds=20)
LOOPBACK = "127.0.0.1"
LOOPBACK_INTERFACES = ("lo", "lo0")
WAITING_CONNECTIONS = 2048
"""As many as torch lets wait at its own sockets of a store."""
PIECE = 1 << 22
"""Bytes that the store takes at once; torch refuses 8 MiB."""

_served: "list[Store]" = []
"""Stores that this process holds: each would end with its last owner, while others may be about to join it."""


@contextmanager
def connected() -> Iterator[None]:
    """What torch raises when the process at the other end is gone, as what it means."""
    try:
        yield
    except RuntimeError as error:
        raise LostPeer(f"The connection to the other ranks broke, as one of them has died: {error}") from None


def stay_on_this_machine(topology: Topology) -> None:
    """Where all ranks are on one machine, gloo listens on the loopback device, unless GLOO_SOCKET_IFNAME names another."""
    if not topology.is_one_machine or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    found = [name for _, name in socket.if_nameindex() if name in LOOPBACK_INTERFACES]
    if found:
        os.environ["GLOO_SOCKET_IFNAME"] = found[0]


def connect(topology: Topology, timeout: timedelta) -> "Store":
    """Open a new connection to torchrun's store."""
    from torch._C._distributed_c10d import TCPStore  # torch.distributed hands it on, but its types do not

    assert topology.rendezvous is not None
    host, port, held_by_agent = topology.rendezvous
    is_master = not held_by_agent and topology.is_main
    stays_here = not held_by_agent and topology.is_one_machine
    if stays_here:
        host = LOOPBACK
    # The agent's store is up before any rank: what does not answer now is dead.
    store = TCPStore(
        host, port, is_master=is_master, wait_for_workers=False, multi_tenant=True,
        timeout=min(timeout, CONNECT_TIMEOUT) if held_by_agent else timeout,
        master_listen_fd=_listen(port) if is_master and stays_here else None,
    )  # fmt: skip
    store.set_timeout(timeout)
    if is_master:
        _served.append(store)
    return store


def _listen(port: int) -> int | None:
    """A socket for the store on the loopback device: torch's own would listen on all. None if this process holds the port
    already, which torch then knows (`multi_tenant`)."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((LOOPBACK, port))
        except OSError:
            return None
        listening.listen(WAITING_CONNECTIONS)
        return listening.detach()


def part(store: "Store", prefix: str) -> "Store":
    """The names of the store that begin with the prefix, as a store of their own."""
    from torch._C._distributed_c10d import PrefixStore

    return PrefixStore(prefix, store)


class Numbers:
    """Numbers in a store that all ranks share; rank 0 may hold it, and die."""

    def __init__(self, store: "Store") -> None:
        self._store = store

    def add(self, key: str, amount: int, /) -> int:
        """Add to a number, which begins at 0, and return what it is then; nobody comes in between.

        Raises:
            LostPeer: the process that holds the store is gone.
        """
        with connected():
            return self._store.add(key, amount)


def agree_on_attempt(topology: Topology, store: "Store", timeout: timedelta) -> str:
    """A name that all ranks of this attempt have, and no earlier one had.

    Raises:
        RuntimeError: not all ranks came within the time.
    """
    if topology.is_main:
        return _hand_out(store, topology.world_size, timeout)
    drawn = uuid.uuid4().hex
    store.set(f"dglaunch/hello/{topology.rank}", drawn)
    attempt = store.get(f"dglaunch/welcome/{drawn}").decode()
    store.add(f"dglaunch/thanks/{attempt}", 1)
    return attempt


def _hand_out(store: "Store", world_size: int, timeout: timedelta) -> str:
    """Answer each number until as many have thanked: some may be those of dead processes."""
    attempt = uuid.uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    names = [f"dglaunch/hello/{rank}" for rank in range(1, world_size)]
    answered: set[bytes] = set()
    while store.add(f"dglaunch/thanks/{attempt}", 0) < len(names):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all {world_size} ranks came within {timeout.total_seconds():.0f} s")
        if store.check(names):
            for drawn in set(store.multi_get(names)) - answered:
                store.set(f"dglaunch/welcome/{drawn.decode()}", attempt)
                answered.add(drawn)
        time.sleep(POLL_S)
    return attempt


def hand_on(topology: Topology, read: Callable[[], bytes], timeout: timedelta) -> bytes:
    """What rank 0 reads, on every rank, before there are groups. The others wait for as long as it reads.

    Args:
        timeout: for which a rank waits for another that is not heard of.

    Raises:
        UserError: rank 0 cannot read it.
        LostPeer: a rank has died.
    """
    with connected():
        store = connect(topology, timeout)
        shared = part(store, f"{agree_on_attempt(topology, store, timeout)}/read")
        if topology.is_main:
            return _give(shared, read, topology.world_size - 1, timeout)
        _wait_for(shared, "pieces", timeout)
        pieces = int(shared.get("pieces"))
        data = b"".join(shared.get(str(number)) for number in range(pieces))
        shared.add("taken", 1)
    if pieces < 0:
        raise UserError("Rank 0 cannot read its input.")
    return data


def any_rank(topology: Topology, says_so: bool, timeout: timedelta) -> bool:
    """Whether any rank says so, on every rank, before there are groups.

    Raises:
        LostPeer: a rank has died.
    """
    with connected():
        store = connect(topology, timeout)
        shared = part(store, f"{agree_on_attempt(topology, store, timeout)}/any")
        shared.add("yes", int(says_so))
        shared.add("said", 1)
        _until_all(shared, "said", topology.world_size, timeout)
        found = shared.add("yes", 0) > 0
        shared.add("heard", 1)
        if topology.is_main:  # the store may be this process's
            _until_all(shared, "heard", topology.world_size, timeout)
    return found


def _until_all(shared: "Store", key: str, count: int, timeout: timedelta) -> None:
    begun = time.monotonic()
    while shared.add(key, 0) < count:
        if time.monotonic() - begun > timeout.total_seconds():
            raise RuntimeError(f"not all {count} ranks answered within {timeout.total_seconds():.0f} s")
        time.sleep(POLL_S)


@contextmanager
def _at_work(shared: "Store") -> Iterator[None]:
    """Let those that wait for this rank hear of it as long as the block takes."""
    ended = threading.Event()

    def say_so() -> None:
        with suppress(RuntimeError):  # the store is gone: the block, or what comes after it, will say so
            while not ended.wait(HEARD_EVERY_S):
                shared.add("at work", 1)

    thread = threading.Thread(target=say_so, name="tell others of this rank", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _wait_for(shared: "Store", key: str, timeout: timedelta) -> None:
    """Wait for what another rank sets in the end, as long as it is heard of."""
    heard, since = 0, time.monotonic()
    while not shared.check([key]):
        time.sleep(POLL_S)
        if (now := shared.add("at work", 0)) != heard:
            heard, since = now, time.monotonic()
        if time.monotonic() - since > timeout.total_seconds():
            raise RuntimeError(f"the rank that reads was not heard of for {timeout.total_seconds():.0f} s")


def _give(shared: "Store", read: Callable[[], bytes], others: int, timeout: timedelta) -> bytes:
    """Read on rank 0, and stay until the others have it: the store may be this process's, and its memory is limited."""
    try:
        with _at_work(shared):
            data = read()
    except BaseException:
        shared.set("pieces", "-1")
        raise
    pieces = [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
    for number, piece in enumerate(pieces):
        shared.set(str(number), piece)  # type: ignore[arg-type]  # it takes bytes, too
    shared.set("pieces", str(len(pieces)))
    _until_all(shared, "taken", others, timeout)
    for number in range(len(pieces)):
        shared.delete_key(str(number))
    return data


@contextmanager
def made_on_node(topology: Topology, make: Callable[[], str], timeout: timedelta) -> Iterator[str]:
    """Yield on each rank of a node what its first rank makes, before there are groups. The others wait for as long as that
    takes, and the first rank stays until they are through the block.

    Args:
        timeout: for which a rank waits for another that is not heard of.

    Raises:
        UserError: the first rank cannot make it.
        LostPeer: a rank has died.
    """
    with connected():
        store = connect(topology, timeout)
        name = f"{agree_on_attempt(topology, store, timeout)}/node{topology.rank - topology.local_rank}"
        shared = part(store, name)
        made = _made_first(shared, make) if topology.local_rank == 0 else _waited_for(shared, timeout)
    yield made
    with connected():
        shared.add("taken", 1)
        if topology.local_rank == 0:
            _until_all(shared, "taken", topology.local_world_size, timeout)


def _made_first(shared: "Store", make: Callable[[], str]) -> str:
    try:
        with _at_work(shared):
            made = make()
    except BaseException:
        shared.set("failed", "1")
        shared.set("made", "")
        raise
    shared.set("made", made)
    return made


def _waited_for(shared: "Store", timeout: timedelta) -> str:
    _wait_for(shared, "made", timeout)
    if shared.check(["failed"]):
        raise UserError("The first rank of this node cannot read its input.")
    return shared.get("made").decode()
