"""Who writes to the results under an address: for each part of a job an object that its owner renews (storage/lease.py).

leases.take("-node0of4", ["-node0of4-rank*"], in_use)       # or an error that says who writes there
leases.is_lost                                              # somebody has taken over
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase

from dglaunch.errors import UserError
from dglaunch.output.far_files import OWN
from dglaunch.storage import lease
from dglaunch.storage.lease import Lease
from dglaunch.storage.store import Store

LEASES = f"{OWN}/leases/"
PROBE = f"{OWN}/probe"


class Leases:
    """What this process holds under an address, and what it may know of the others."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: list[Lease] = []

    def __bool__(self) -> bool:
        """Whether it holds anything."""
        return bool(self._held)

    def take(self, suffix: str, others: Sequence[str], in_use: Callable[[str], UserError]) -> None:
        """See that a part can be written, and hold it from now on.

        Args:
            suffix: of the part's files.
            others: patterns of the parts that nobody else may write.
            in_use: makes the error that says who writes.

        Raises:
            UserError: it cannot be written, or somebody else writes there.
        """
        own = _name_of(suffix)
        _, now = self._take(own, f"{PROBE}{suffix}", in_use)
        for name in self._names(others):
            if name != own and (found := self._store.read(name, lease.MOST)) is not None:
                lease.wait_for_death(self._store, name, found, now, in_use)
                self._store.delete([name])

    @contextmanager
    def holding(self, what: str, in_use: Callable[[str], UserError]) -> Iterator[None]:
        """Hold something else under the address than a part of the job, inside the block.

        Raises:
            UserError: somebody holds it, or nothing can be written.
            StorageError: the store cannot be asked.
        """
        held, _ = self._take(f"{LEASES}{what}.json", f"{PROBE}-{what}", in_use)
        try:
            yield
        finally:
            held.close()
            self._held.remove(held)

    def _take(self, name: str, probe: str, in_use: Callable[[str], UserError]) -> tuple[Lease, datetime]:
        """Hold something; return that, and what time it is for the store."""
        now = self._store.check_writable(probe, os.urandom(8))
        held = Lease(self._store, name, in_use)
        held.take(now)
        self._held.append(held)
        return held, now

    def renew(self) -> None:
        """See that nobody has taken over; then nobody does for a minute."""
        for held in self._held:
            held.renew()

    @property
    def is_lost(self) -> bool:
        """Whether somebody has taken over what this process held."""
        return any(held.is_lost for held in self._held)

    def is_held(self, pattern: str) -> bool:
        """Return whether somebody writes to such parts."""
        now = datetime.now(UTC)
        return any(lease.is_held(self._store, name, now) for name in self._names([pattern]))

    def close(self) -> None:
        """Give all back. Closing twice does nothing."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _names(self, patterns: Sequence[str]) -> list[str]:
        names = [found.name for found in self._store.list(LEASES.rstrip("/"))]
        return [name for name in names if any(fnmatchcase(name, _name_of(pattern)) for pattern in patterns)]


def _name_of(suffix: str) -> str:
    return f"{LEASES}owner{suffix}.json"
