"""The folder on this machine in which a process works on results that lie in an object store.

    folder = working_folder(Address("s3://bucket/prefix"), cache)      # a Path; as a text it is the address
    open(folder / "run.json")                                          # the file on this machine

So all that works on a folder works on it, and what is said of its files names the objects. Of most objects there is a stub: a file
of the same size and time with nothing in it, and no permission to write. Who reads one, or gives a file a name, asks what lies behind
the folder (`Behind`).
"""

import atexit
import fcntl
import hashlib
import io
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Protocol

from dglaunch.addresses import Address
from dglaunch.elsewhere import PathElsewhere
from dglaunch.files import at_home, make_cache_folder, open_lock, open_regular

_FOLDER = "working"
_LOCK = ".lock"
_STUB = 0o400
"""The permissions of a file that stands for an object. No other file of a working folder has these."""
_addresses: dict[str, Address] = {}
"""Of each working folder of this process."""


class Behind(Protocol):
    """What lies behind a working folder. Names are those of objects."""

    def opened(self, name: str) -> io.BufferedReader:
        """Return the bytes of an object, to be read."""

    def bring(self, name: str) -> None:
        """Make of a stub the file that it stands for."""

    def put(self, name: str) -> None:
        """Put the file of this name."""

    def take(self, name: str, source: Path) -> bool:
        """Give a file this name, as an object and here; False: it is only a file of this machine."""


_behind: dict[str, Behind] = {}


def lies_behind(folder: "WorkingPath", behind: Behind) -> None:
    """From now on the files of a working folder are read and given names through this."""
    _behind[os.fspath(folder)] = behind


def write_stub(path: Path, size: int, modified: datetime) -> None:
    """Write a file that has the size and the time of an object, and nothing in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # and no other name of it
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _STUB)
    try:
        os.fchmod(descriptor, _STUB)
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)
    os.utime(path, (modified.timestamp(), modified.timestamp()))


def is_stub(path: Path) -> bool:
    """Return whether a file stands for an object, and has nothing in it."""
    try:
        info = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and stat.S_IMODE(info.st_mode) == _STUB


class WorkingPath(PathElsewhere):
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

    def rglob(self, pattern: str, **settings: bool) -> Iterator["WorkingPath"]:
        return map(WorkingPath, map(os.fspath, Path(self.__fspath__()).rglob(pattern, **settings)))

    def iterdir(self) -> Iterator["WorkingPath"]:
        return map(WorkingPath, map(os.fspath, Path(self.__fspath__()).iterdir()))

    @property
    def root_folder(self) -> str:
        """The working folder that it is in, or is."""
        here = self.__fspath__()
        return next(root for root in _addresses if here == root or here.startswith(f"{root}/"))

    @property
    def name_there(self) -> str:
        """The name of the object that it stands for, or would be."""
        return os.path.relpath(self.__fspath__(), self.root_folder)

    def opened_there(self) -> io.BufferedReader | None:
        behind = _behind.get(self.root_folder) if is_stub(self) else None
        return behind.opened(self.name_there) if behind is not None else None

    def bring(self) -> None:
        if is_stub(self) and (behind := _behind.get(self.root_folder)) is not None:
            behind.bring(self.name_there)

    def put(self) -> None:
        if (behind := _behind.get(self.root_folder)) is not None:
            behind.put(self.name_there)

    def take(self, source: Path) -> bool:
        behind = _behind.get(self.root_folder)
        return behind is not None and behind.take(self.name_there, source)


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
