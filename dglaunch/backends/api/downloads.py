"""An image that an answer only points to is fetched here. The server chooses the address, so it is not trusted.

Nothing is fetched from this machine, its network or a cloud's address of metadata (169.254.169.254) because a server says
so, also not by a redirect or by a name that leads there: the addresses are looked at when the connection is made. The
API's own host and port are the user's choice and may be anywhere.
"""

import functools
import http.client
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from dglaunch.backends.api.answers import RequestError

MOST_BYTES = 1 << 27
PIECE = 1 << 16
PAUSE_S = 1.0
TRIES = 3
PORTS = {"http": 80, "https": 443}

Origin = tuple[str, int]
"""Host and port."""


def origin_of(scheme: str, host: str, port: int | None) -> Origin:
    """Return host and port of an address, the port also where it is left out."""
    return host.lower().strip("[]"), port if port is not None else PORTS.get(scheme, 0)


def download(address: str, timeout: float, own: Origin) -> bytes:
    """Fetch an image. It is paid for already, so the download has tries of its own.

    Args:
        timeout: seconds for all of it, whatever it is that takes long.
        own: the API's own host and port.

    Raises:
        RequestError: it cannot be fetched, or must not.
    """
    deadline = time.monotonic() + timeout
    for last in (False,) * (TRIES - 1) + (True,):
        try:
            return _fetch(address, deadline, own)
        except (OSError, ValueError, http.client.HTTPException) as error:
            late = time.monotonic() > deadline
            if last or late:
                reason = f"not within {timeout:g} s (--timeout)" if late else error
                raise RequestError(
                    "again", f"the image cannot be fetched from the address in the answer: {reason}"
                ) from None
        time.sleep(PAUSE_S)
    raise AssertionError("the last try returns or raises")


def _fetch(address: str, deadline: float, own: Origin) -> bytes:
    with _Connections(own).until(deadline) as connections:
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(), _Redirects(), _Http(connections), _Https(connections),
        ):  # fmt: skip
            opener.add_handler(handler)
        request = urllib.request.Request(_checked(address).geturl())
        with opener.open(request, timeout=max(deadline - time.monotonic(), 0.001)) as answer:
            data = _read(answer)
    if time.monotonic() > deadline:  # it was shut down, which looks like an end
        raise OSError("too late")
    return data


def _read(answer: http.client.HTTPResponse) -> bytes:
    data = bytearray()
    while piece := answer.read1(PIECE):
        data += piece
        if len(data) > MOST_BYTES:
            raise RequestError("refused", f"the image that the answer points to is larger than {MOST_BYTES:,} bytes")
    if answer.length:  # the connection ended before
        raise OSError(f"{answer.length:,} bytes are missing")
    return bytes(data)


def _checked(address: str) -> SplitResult:
    parts = urlsplit(address)
    if parts.scheme not in PORTS or not parts.hostname:
        raise RequestError("refused", "the answer points to something that is no http address")
    return parts


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a few redirects; each makes a connection of its own, which is looked at as the first is."""

    max_redirections = 5

    def redirect_request(self, *args: object) -> urllib.request.Request | None:
        _checked(str(args[-1]))
        return super().redirect_request(*args)  # type: ignore[arg-type]  # as the base class calls it


@dataclass(slots=True)
class _Connections:
    """The connections of one download: where they may lead, and their end when the time is over."""

    own: Origin
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


def refuse_private(origin: Origin, places: list[str], own: Origin) -> None:
    """Refuse addresses that are not public, but for the API's own host and port.

    Raises:
        RequestError: there is one.
    """
    private = [place for place in places if not _is_public(place)]
    if private and origin != own:
        raise RequestError(
            "refused",
            f"the answer points to {origin[0]}, port {origin[1]}, which is {private[0]}: no public address, and not the "
            "API's own. dglaunch fetches nothing from a private network because a server says so",
        )


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
