"""The servers that are asked: one as a rule, several where --api_base names them. Each has its own limit of requests at a time.

    server, since = pool.enter(should_stop)     the freest one; waits where none is free
    ... the request is sent to it, its answer read ...
    server.limiter.leave()
    pool.works(server) | pool.fails(server, since, why)

One that fails is set aside for a pause that grows while it keeps failing; then one request tries it. A single server is never
set aside: there the items wait before they are sent again.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from dglaunch.backends.api.limits import LOOK_EVERY_S, ConcurrencyLimiter, doubled
from dglaunch.errors import Drained
from dglaunch.storage.public_web import Origin, origin_of

SHOWN_FAILURES = 5


@dataclass(slots=True)
class Server:
    """One server, and how it does."""

    base: str
    """Its address without a slash at the end; "" for the SDK's own."""
    limiter: ConcurrencyLimiter
    origin: Origin = ("", 0)
    """Host and port. Of the SDK's own address they are known with the first request."""
    failures: int = 0
    """In a row."""
    failed_at: float = 0.0
    not_before: float = 0.0
    """It is set aside until then."""

    def rebased(self, address: str, first: "Server") -> str:
        """The address of a request to this server, of one that was built for the first."""
        return self.base + address.removeprefix(first.base) if self.base else address


class Pool:
    """The servers of one rank."""

    def __init__(self, bases: Sequence[str], places: int, delay: float, note: Callable[[str], None]) -> None:
        self._changed = threading.Condition()
        self._delay = delay
        self._note = note
        self._shown = 0
        self.servers = [self._server(base.rstrip("/"), places, len(bases) > 1) for base in bases or [""]]

    def _server(self, base: str, places: int, named: bool) -> Server:
        def note(text: str) -> None:
            self._note(f"{base}: {text}" if named else text)

        parts = urlsplit(base)
        origin = origin_of(parts.scheme, parts.hostname, parts.port) if parts.hostname else ("", 0)
        return Server(base, ConcurrencyLimiter(places, note, self._changed), origin)

    @property
    def first(self) -> Server:
        return self.servers[0]

    @property
    def has_several(self) -> bool:
        return len(self.servers) > 1

    def enter(self, should_stop: Callable[[], bool]) -> tuple[Server, float]:
        """Take a place at the freest server; returns it and the time.

        Raises:
            Drained: the run is being stopped, and the request was not begun.
        """
        with self._changed:
            while True:
                if should_stop():
                    raise Drained
                now = time.monotonic()
                free = [server for server in self.servers if now >= server.not_before and server.limiter.is_free(now)]
                if free:
                    server = min(free, key=lambda server: server.limiter.load)
                    server.limiter.take()
                    return server, time.monotonic()
                self._changed.wait(LOOK_EVERY_S)

    def works(self, server: Server) -> None:
        """An answer came from it."""
        with self._changed:
            if server.failures:
                server.failures, server.not_before = 0, 0.0
                self._tell(f"{server.base} answers again")
            server.limiter.went_well()

    def fails(self, server: Server, since: float, why: str) -> None:
        """It does not answer, or cannot work; requests that were under way together count as one failure."""
        with self._changed:
            if not self.has_several or since <= server.failed_at:
                return
            now = time.monotonic()
            pause = doubled(max(self._delay, LOOK_EVERY_S), server.failures)
            server.failures += 1
            server.failed_at, server.not_before = now, now + pause
            server.limiter.only_one()
            self._tell(f"{server.base} is set aside for {pause:g} s, the others go on: {why}")

    def _tell(self, text: str) -> None:
        self._shown += 1
        if self._shown <= SHOWN_FAILURES * len(self.servers):
            self._note(text)
