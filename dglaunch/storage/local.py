"""Tables and input images that lie elsewhere, as files on this machine's disk or as bytes.

    local_file(Address("s3://bucket/rows.parquet"))         # a path on this machine
    read(Address("https://images.example/1.jpg"), most)     # bytes
    matching(Address("s3://bucket/rows/*.parquet"))         # the addresses that it stands for

What was fetched is kept in `remote` of --cache_dir under the object's address and version, so that the ranks of a node fetch it
once: the first one locks its name, the others wait for it. The oldest files go when there are more than MOST_KEPT bytes.
"""

import fcntl
import fnmatch
import glob
import hashlib
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from dglaunch.addresses import Address, problem_with
from dglaunch.atomic import atomic_write
from dglaunch.files import at_home, make_cache_folder, open_lock, read_bytes
from dglaunch.storage.errors import REFUSED, TEMPORARY, StorageError
from dglaunch.storage.retrying import Retries
from dglaunch.storage.store import Found, Store

MOST_TABLE, MOST_IMAGE = 1 << 40, 1 << 30
"""Bytes of a table, and of an input image."""
MOST_KEPT = 50 << 30
FETCH_S = 3600.0
"""Longest time of a file on the web."""
PATIENCE_S = 120.0
WEB_PATIENCE_S = 20.0
"""Seconds for which a host of the web is asked; one that said nothing in that time is asked once for each further file."""
SWEPT_EVERY = 256
"""Files that are fetched between two looks at the size of the cache."""
FOLDER = "remote"


class _Kept:
    """Where fetched files are kept, and whom the user trusts; one for the process, as --cache_dir is."""

    def __init__(self) -> None:
        self.folder = Path("~/.cache/dglaunch")
        self.named: list[SplitResult] = []
        self.fetched = 0


_kept = _Kept()


def fetch_for(named: Iterable[Path], folder: Path) -> None:
    """Begin a job.

    Args:
        named: what the user has named in flags. The hosts of addresses among them may be in a private network, where tables
            that strangers wrote may not lead.
        folder: --cache_dir, where what is fetched is kept.
    """
    _kept.folder = folder
    _kept.named = [urlsplit(path.full) for path in named if isinstance(path, Address) and not path.is_store]


# -- files and bytes --------------------------------------------------------------------------------------------------


def local_file(address: Address, most: int = MOST_TABLE) -> Path:
    """Return a copy of an object, or of a file on the web, on this machine's disk; it keeps the name's ending.

    Raises:
        StorageError: it is not there, cannot be read, or is larger than `most` bytes; `strerror` ends a sentence about it.
    """
    if problem := problem_with(address):
        raise StorageError(f"the address {problem}", REFUSED)
    found = _store_of(address).look_at(_name_in(address)) if address.is_store else None
    state = f"{found.version} {found.size}" if found is not None else str(int(time.time() // FETCH_S))
    name = hashlib.sha256(f"{address.full} {state}".encode()).hexdigest()[:32] + "".join(
        Path(address.name).suffixes[-2:]
    )
    path = at_home(_kept.folder) / FOLDER / name[:2] / name
    try:
        make_cache_folder(path.parent)
        with _alone(path):
            if path.is_file():
                os.utime(path)  # it was wanted just now: others go first
                return path
            _fetch(address, found, path, most)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"it cannot be kept in {path.parent}: {error.strerror or error}", REFUSED) from None
    _sweep(path)
    return path


def read(address: Address, most: int = MOST_IMAGE) -> bytes:
    """Return the bytes of an object, or of a file on the web.

    Raises:
        StorageError: as `local_file`.
    """
    return read_bytes(local_file(address, most), most)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine fetches a file, or hands it out."""
    with open_lock(path.parent / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(address: Address, found: Found | None, path: Path, most: int) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as out:
        if found is not None:
            out.writelines(_store_of(address).pieces(found, most))
            return

        def once() -> None:
            out.seek(0)
            out.truncate()
            out.writelines(_from_the_web(address, most))

        _patience_with(urlsplit(address.full).netloc)(once)


@lru_cache(maxsize=1024)
def _patience_with(_host: str) -> Retries:
    return Retries(WEB_PATIENCE_S)


def _from_the_web(address: Address, most: int) -> Iterator[bytes]:
    import http.client  # with TLS and all else an eighth of what a start imports

    from dglaunch.storage.public_web import Refused, opened, origin_of, pieces

    own = {origin_of(part.scheme, part.hostname or "", part.port) for part in _kept.named}
    try:
        with opened(address.full, time.monotonic() + FETCH_S, own, ("https",)) as answer:
            yield from pieces(answer, most)
    except Refused as error:
        raise StorageError(f"it {error}", REFUSED) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        status = getattr(error, "code", None)
        if isinstance(status, int):
            kind = TEMPORARY if status >= 500 or status in (408, 425, 429) else REFUSED
            raise StorageError(
                "there is no such file" if status == 404 else f"the server answered {status}", kind
            ) from None
        inner = getattr(error, "reason", error)
        is_unknown = isinstance(inner, socket.gaierror) and inner.errno == socket.EAI_NONAME
        raise StorageError(f"the connection failed ({_reason(error)})", REFUSED if is_unknown else TEMPORARY) from None


def _reason(error: Exception) -> object:
    """Without the address, whose query may be a password."""
    inner = getattr(error, "reason", error)
    return (inner.strerror if isinstance(inner, OSError) else None) or type(inner).__name__


def _sweep(new: Path) -> None:
    """Remove what was wanted longest ago, where too much is kept."""
    _kept.fetched += 1
    if _kept.fetched % SWEPT_EVERY != 1 and new.stat().st_size < MOST_KEPT // SWEPT_EVERY:
        return
    files = sorted((info.st_mtime, info.st_size, path) for path, info in _regular(new.parent.parent))
    excess = sum(size for _, size, _ in files) - MOST_KEPT
    for _, size, path in files:
        if excess <= 0:
            return
        if path != new:
            path.unlink(missing_ok=True)
            excess -= size


def _regular(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for path in folder.glob("??/[0-9a-f]*"):
        try:
            yield path, path.stat()
        except OSError:
            continue


# -- which objects ----------------------------------------------------------------------------------------------------


def matching(address: Address) -> list[Address]:
    """Return what an address stands for: itself; in the place of a pattern (s3://bucket/rows/*.parquet) all objects that it
    fits; in the place of a prefix the objects directly below it; by name.

    Raises:
        StorageError: it cannot be asked, or there is nothing.
    """
    if not address.is_store:
        return [address]
    bucket = Address(f"{address.scheme}://{address.container}")
    if glob.has_magic(address.key):
        names = sorted(found.name for found in _store_of(address).list(_plain_folder(address.key)))
        fitting = [name for name in names if fnmatch.fnmatchcase(name, address.key)]
        if not fitting:
            raise StorageError("no object fits it", REFUSED)
        return [bucket / name for name in fitting if name.count("/") == address.key.count("/")]
    try:
        _store_of(address).look_at(_name_in(address))
        return [address]
    except FileNotFoundError:
        depth = address.key.count("/") + 1 if address.key else 0
        below = sorted(found.name for found in _store_of(address).list(address.key) if found.name.count("/") == depth)
        if not below:
            raise StorageError("there is no such object, and none below it", REFUSED) from None
        return [bucket / name for name in below]


def _plain_folder(pattern: str) -> str:
    """The folder of names in which all lie that a pattern fits."""
    parts = pattern.split("/")
    magic = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return "/".join(parts[:magic])


def _name_in(address: Address) -> str:
    if not address.key:
        raise FileNotFoundError
    return address.key


def _store_of(address: Address) -> Store:
    return _store(address.scheme, address.container)


@lru_cache(maxsize=16)
def _store(scheme: str, container: str) -> Store:
    return Store(Address(f"{scheme}://{container}"), Retries(PATIENCE_S))
