"""The connections to the other ranks, looked at from outside: has one of them broken?

    with opened_here(sockets): ...          # gloo connects
    lines = Lifelines(sockets)
    lines.have_broken()                     # nothing is read from them, nobody waits

gloo closes its end of a connection that has broken, and tells only who waits for that very rank; a rank on another machine
is nobody's child here. The system's word needs no thread of the other side: a process that is killed closes its connections,
and of a machine that lost power or its network this one's system finds out after VANISHED_S.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager

VANISHED_S = 20
"""Without an answer from the other machine's system (not: from its ranks) for so long, a connection is broken."""
PROBE_EVERY_S = 5


class Lifelines:
    """Lifelines know whether any of some connections has broken since they were last asked."""

    def __init__(self, sockets: Collection[int]) -> None:
        """
        Args:
            sockets: their numbers in this process.
        """
        for number in sockets:
            _probe(number)
        self._open = {number: _socket_at(number) for number in sockets}
        """Which socket has each number: a number that is free is given to the next file."""

    def have_broken(self) -> bool:
        """Return whether one has; each is told once."""
        closed = [number for number, inode in self._open.items() if _socket_at(number) != inode]
        for number in closed:
            del self._open[number]
        return bool(closed)


def _socket_at(number: int) -> int | None:
    try:
        return os.fstat(number).st_ino
    except OSError:
        return None


@contextmanager
def opened_here(sockets: set[int]) -> Iterator[None]:
    """Add to `sockets` the connections that are opened in this block."""
    before = _connections()
    yield
    sockets |= _connections() - before


def _connections() -> set[int]:
    """The numbers of this process's TCP connections."""
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:  # another system: a dead rank is noticed later, by its silence
        return set()
    return {number for number in numbers if _is_connection(number)}


def _is_connection(number: int) -> bool:
    with contextlib.suppress(OSError), _as_socket(number) as same:
        same.getpeername()
        return same.family in (socket.AF_INET, socket.AF_INET6) and same.type == socket.SOCK_STREAM
    return False


def _probe(number: int) -> None:
    """Let the system ask the other side's from time to time, whatever the two processes do."""
    with contextlib.suppress(OSError, AttributeError), _as_socket(number) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_EVERY_S)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, VANISHED_S // PROBE_EVERY_S)
        same.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, VANISHED_S * 1000)


@contextmanager
def _as_socket(number: int) -> Iterator[socket.socket]:
    """The same socket under a number of its own, closed afterwards.

    Raises:
        OSError: it is none, or closed.
    """
    if not stat.S_ISSOCK(os.fstat(number).st_mode):  # a failure to make a socket of it would leave the copy open
        raise OSError(errno.ENOTSOCK, "no socket")
    with socket.socket(fileno=os.dup(number)) as same:
        yield same
