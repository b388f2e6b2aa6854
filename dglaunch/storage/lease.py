"""Who writes under an address: an object that its owner renews, and that is put on the condition that nobody else has.

No clock of this machine decides: whether an owner still renews is told by the store's own times, or by watching. A process
that lost its lease (it slept, or the store did not answer it) finds out with its next renewal, and stops.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import sleep

from dglaunch.errors import UserError
from dglaunch.storage.errors import StorageError
from dglaunch.storage.store import Store, Version

RENEWED_S, DEAD_S = 15.0, 90.0
"""An owner renews so often; one that has not for so long is dead."""
POLL_S = 2.0
MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class Owner:
    """What a lease says."""

    host: str
    process: str
    """Which process of which boot of the host."""
    pid: int

    @classmethod
    def this(cls) -> "Owner":
        return cls(socket.gethostname(), _process(os.getpid()), os.getpid())

    @classmethod
    def parse(cls, data: bytes) -> "Owner":
        """Anyone may have written it."""
        try:
            found = json.loads(data)
            return cls(str(found["host"]), str(found["process"]), int(found["pid"]))
        except (ValueError, KeyError, TypeError):
            return cls("an unknown host", "", 0)

    @property
    def is_known_dead(self) -> bool:
        """Whether it was a process of this very boot (and container), and is not there any more."""
        here, _, _ = _process(os.getpid()).rpartition(" ")
        return bool(here) and self.process.startswith(f"{here} ") and self.process != _process(self.pid)

    def data(self, number: int) -> bytes:
        return json.dumps({"host": self.host, "process": self.process, "pid": self.pid, "renewed": number}).encode()


def _process(pid: int) -> str:
    """What tells a process from all others: boot, namespace of process ids, and when it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {started}"
    except (OSError, IndexError):
        return ""


class Lease:
    """One name under an address, held by this process until it is closed."""

    def __init__(self, store: Store, name: str, in_use: Callable[[str], UserError]) -> None:
        """
        Args:
            in_use: the error that says by whom it is held.
        """
        self._store = store
        self._name = name
        self._in_use = in_use
        self._owner = Owner.this()
        self._count = 0
        self._version: Version = {}
        self._turn = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew_all, name="renew the lease", daemon=True)
        self.is_lost = False

    def take(self, now: datetime) -> None:
        """Take it, also from an owner that is dead.

        Args:
            now: the store's own time.

        Raises:
            UserError: somebody holds it.
            StorageError: the store cannot be asked.
        """
        version = self._store.put_if_absent(self._name, self._data())
        if version is None:
            version = self._take_over(now)
        self._version = version
        self._thread.start()

    def _data(self) -> bytes:
        self._count += 1
        return self._owner.data(self._count)

    def _take_over(self, now: datetime) -> Version:
        found = self._store.read(self._name, MOST)
        if found is None:  # it was given back just now
            version = self._store.put_if_absent(self._name, self._data())
        else:
            wait_for_death(self._store, self._name, found, now, self._in_use)
            version = self._store.put_if_same(self._name, self._data(), found[1])
        if version is None:
            raise self._in_use("another process took it first")
        return version

    def _renew_all(self) -> None:
        while not self._end.wait(RENEWED_S) and not self.is_lost:
            with suppress(StorageError):  # what does not pass within a renewal's patience is tried by the next
                self.renew()

    def renew(self) -> None:
        """Renew it now: with that, `is_lost` is what the store knows.

        Raises:
            StorageError: the store cannot be asked.
        """
        with self._turn:
            version = self._store.put_if_same(self._name, self._data(), self._version)
            self.is_lost = self.is_lost or version is None
            self._version = version if version is not None else self._version

    def close(self) -> None:
        """Give it back."""
        if self._end.is_set():
            return
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(1.0)
        if not self.is_lost and self._version:
            with suppress(StorageError):
                self._store.delete([self._name])


def wait_for_death(
    store: Store, name: str, found: tuple[bytes, Version], now: datetime, in_use: Callable[[str], UserError]
) -> None:
    """Return once the owner of a lease is known to be dead.

    Raises:
        UserError: it is alive.
    """
    owner = Owner.parse(found[0])
    if owner.is_known_dead:
        return
    age = (now - store.look_at(name).modified).total_seconds()
    until = time.monotonic() + DEAD_S - age
    who = f"process {owner.pid} of {owner.host}"
    while time.monotonic() < until:
        sleep(POLL_S)
        there = store.read(name, MOST)
        if there is None:
            return
        if there[1] != found[1]:
            raise in_use(who)


def is_held(store: Store, name: str, now: datetime) -> bool:
    """Return whether somebody holds a lease, as far as one look can tell."""
    found = store.read(name, MOST)
    if found is None or Owner.parse(found[0]).is_known_dead:
        return False
    return (now - store.look_at(name).modified).total_seconds() < DEAD_S
