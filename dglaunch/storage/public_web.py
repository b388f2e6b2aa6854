"""Files from addresses that strangers chose: an answer of a server, a cell of a table.

Nothing is fetched from this machine, its network or a cloud's address of metadata (169.254.169.254) because a stranger says
so, also not by a redirect or by a name that leads there: the addresses are looked at when the connection is made. Hosts that
the user named in a flag are the user's choice and may be anywhere.

    with opened(address, deadline, own) as answer:
        data = b"".join(pieces(answer, most))
"""

import functools
import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

PIECE = 1 << 16
PORTS = {"http": 80, "https": 443}
Origin = tuple[str, int]
"""Host and port."""


class Refused(Exception):
    """What must not be fetched, or not so much of it, as the end of a sentence about an address."""


def origin_of(scheme: str, host: str, port: int | None) -> Origin:
    """Return host and port of an address, the port also where it is left out."""
    return host.lower().strip("[]"), port if port is not None else PORTS.get(scheme, 0)


@contextmanager
def opened(
    address: str, deadline: float, own: Collection[Origin] = (), schemes: Collection[str] = tuple(PORTS)
) -> Iterator[http.client.HTTPResponse]:
    """Yield the answer to a request for an address.

    Args:
        deadline: of time.monotonic(): when all of it must be here, whatever it is that takes long.
        own: hosts and ports that may be anywhere.
        schemes: http and https, or one of them; also of what it redirects to.

    Raises:
        Refused: it must not be fetched.
        OSError, http.client.HTTPException, ValueError: it cannot be fetched.
    """
    with _Connections(own).until(deadline) as connections:
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(), _Redirects(schemes), _Http(connections), _Https(connections),
        ):  # fmt: skip
            opener.add_handler(handler)
        request = urllib.request.Request(_checked(address, schemes).geturl())
        with opener.open(request, timeout=max(deadline - time.monotonic(), 0.001)) as answer:
            yield answer
    if time.monotonic() > deadline:  # it was shut down, which looks like an end
        raise OSError("too late")


def pieces(answer: http.client.HTTPResponse, most: int) -> Iterator[bytes]:
    """Yield what comes of an answer, to its end.

    Raises:
        Refused: it is larger than `most` bytes.
        OSError: it ended too early.
    """
    size = 0
    while piece := answer.read1(PIECE):
        size += len(piece)
        if size > most:
            raise Refused(f"is larger than {most:,} bytes")
        yield piece
    if answer.length:  # the connection ended before
        raise OSError(f"{answer.length:,} bytes are missing")


def _checked(address: str, schemes: Collection[str]) -> SplitResult:
    parts = urlsplit(address)
    if parts.scheme not in schemes or not parts.hostname:
        raise Refused(f"is no {' or '.join(schemes)} address")
    return parts


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a few redirects; each makes a connection of its own, which is looked at as the first is."""

    max_redirections = 5

    def __init__(self, schemes: Collection[str]) -> None:
        self._schemes = schemes

    def redirect_request(self, *args: object) -> urllib.request.Request | None:
        _checked(str(args[-1]), self._schemes)
        return super().redirect_request(*args)  # type: ignore[arg-type]  # as the base class calls it


@dataclass(slots=True)
class _Connections:
    """The connections of one download: where they may lead, and their end when the time is over."""

    own: Collection[Origin]
    sockets: list[socket.socket] = field(default_factory=list)
    """Second handles, to shut them down from another thread."""

    @contextmanager
    def until(self, deadline: float) -> Iterator["_Connections"]:
        """A server that sends a byte now and then keeps every single read within its time; this ends the whole."""
        timer = threading.Timer(max(deadline - time.monotonic(), 0.0), self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield self
        finally:
            timer.cancel()
            for handle in self.sockets:
                handle.close()

    def _shut_down(self) -> None:
        for handle in list(self.sockets):
            try:
                handle.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended

    def connect(
        self, address: tuple[str, int], timeout: float | None = None, _source: object = None, *, looked_at: bool
    ) -> socket.socket:
        """Connect as socket.create_connection() does.

        Args:
            looked_at: whether it may lead to public addresses only (not so for the user's own proxy).
        """
        host, port = address
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        places = [str(entry[4][0]) for entry in found]
        if looked_at:
            refuse_private((host.lower(), port), places, self.own)
        connection = socket.create_connection((places[0], port), timeout)
        self.sockets.append(connection.dup())
        return connection


def refuse_private(origin: Origin, places: list[str], own: Collection[Origin]) -> None:
    """Refuse addresses that are not public, but for hosts and ports of the user's choice.

    Raises:
        Refused: there is one.
    """
    private = [place for place in places if not _is_public(place)]
    if private and origin not in own:
        raise Refused(f"leads to {origin[0]}, port {origin[1]}, which is {private[0]}: no public address")


def _is_public(place: str) -> bool:
    address = ipaddress.ip_address(place.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inside is not None:
            address = inside
    return address.is_global and not address.is_multicast


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_maker(http.client.HTTPConnection, req, self._connections), req)  # type: ignore[arg-type]  # any callable does


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connections: _Connections) -> None:
        super().__init__()
        self._connections = connections

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_maker(http.client.HTTPSConnection, req, self._connections), req)  # type: ignore[arg-type]


def _maker(
    kind: type[http.client.HTTPConnection], request: urllib.request.Request, connections: _Connections
) -> object:
    """A class of connections, as far as urllib calls it."""
    parts = urlsplit(request.full_url)
    by_proxy = request.host != parts.netloc
    if by_proxy:  # the proxy looks the name up; what can be seen from here is looked at all the same
        try:
            found = socket.getaddrinfo(parts.hostname, None)
        except OSError:
            found = []
        origin = origin_of(parts.scheme, parts.hostname or "", parts.port)
        refuse_private(origin, [str(entry[4][0]) for entry in found], connections.own)

    def make(host: str, **settings: object) -> http.client.HTTPConnection:
        connection = kind(host, **settings)  # type: ignore[arg-type]  # urllib's own
        connection._create_connection = functools.partial(connections.connect, looked_at=not by_proxy)  # type: ignore[attr-defined]
        return connection

    return make
