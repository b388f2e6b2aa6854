"""The folder on this machine in which a process works on results that lie in an object store.

    folder = working_folder(Address("s3://bucket/prefix"), cache)      # a Path; as a text it is the address
    open(folder / "run.json")                                          # the file on this machine

So all that works on a folder works on it, and what is said of its files names the objects.
"""

import atexit
import fcntl
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dglaunch.addresses import Address
from dglaunch.files import at_home, make_cache_folder, open_lock, open_regular

_FOLDER = "working"
_LOCK = ".lock"
_addresses: dict[str, Address] = {}
"""Of each working folder of this process."""


class WorkingPath(type(Path())):  # type: ignore[misc]  # the Path of this system
    """A file in a working folder."""

    def __fspath__(self) -> str:
        return str(super().__str__())

    def __str__(self) -> str:
        here = self.__fspath__()
        for root, address in _addresses.items():
            if here == root or here.startswith(f"{root}/"):
                return f"{address}{here[len(root) :]}"
        return here

    def glob(self, pattern: str, **settings: bool) -> Iterator["WorkingPath"]:
        return map(WorkingPath, map(os.fspath, Path(self.__fspath__()).glob(pattern, **settings)))

    @property
    def root_folder(self) -> str:
        """The working folder that it is in, or is."""
        here = self.__fspath__()
        return next(root for root in _addresses if here == root or here.startswith(f"{root}/"))


def working_folder(address: Address, cache: Path) -> WorkingPath:
    """Make an empty working folder for this process, which goes when the process ends.

    Raises:
        OSError: it cannot be made.
    """
    place = at_home(cache) / _FOLDER / socket.gethostname() / hashlib.sha256(str(address).encode()).hexdigest()[:16]
    make_cache_folder(place)
    _sweep(place)
    root = tempfile.mkdtemp(dir=place)
    held = open_lock(Path(root) / _LOCK)
    fcntl.flock(held, fcntl.LOCK_EX)
    (folder := Path(root) / "folder").mkdir()
    _addresses[str(folder)] = address
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # and not a fork of it
            shutil.rmtree(root, ignore_errors=True)
        held.close()

    atexit.register(remove)
    return WorkingPath(folder)


def address_of(path: Path) -> Address | None:
    """Return the address that a working folder stands for; None for a folder that is one itself."""
    return _addresses.get(os.fspath(path)) if isinstance(path, WorkingPath) else None


def _sweep(place: Path) -> None:
    """Remove what killed processes of this machine have left."""
    for root in place.iterdir():
        with suppress(OSError), open_regular(root / _LOCK) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(root, ignore_errors=True)
