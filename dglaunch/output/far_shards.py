"""Shards (--store) in an object store, which cannot append to an object: a shard that is being filled lies there in pieces.

    shards/00000.tar                                  closed: put whole, after its index (.dglaunch-shards/00000.tar.json)
    .dglaunch/open/00001.tar/00000007-9f3c2a1b.tar    a piece of an open one: some whole images, as they stand in its tar

In the working folder an open shard is one tar, as on a disk; a closed one is a file of its size with nothing in it, and its
images are read by their places. What a killed process was filling is fetched by who takes it over, and is an open shard again.
Who only looks does not fetch it: a shard in pieces is believed to have the images that lines name, and passes for a closed one.
"""

import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from dglaunch.output import shards
from dglaunch.output.in_window import in_window
from dglaunch.output.shards import SHARDS, ShardName
from dglaunch.storage.store import Found, Store
from dglaunch.storage.uploads import AT_A_TIME, Uploads
from dglaunch.storage.working import write_stub

OPEN = ".dglaunch/open/"
PIECE_S, PIECE_BYTES = 2.0, 16 << 20
"""Images go on their way together when the first of them is so old, or so many bytes are there: with what is on its way
(storage/uploads.py) all that a loss of the machine costs."""
MOST_PIECE, MOST_SHARD = 1 << 32, 1 << 40
_PIECE = re.compile(re.escape(OPEN) + r"([^/]+)/(\d{8})-[0-9a-f]{8}\.tar", re.ASCII)


def shard_of_piece(name: str) -> str:
    """Return the shard that an object is a piece of; empty for any other object."""
    found = _PIECE.fullmatch(name)
    return found[1] if found is not None and ShardName.of(found[1]) is not None else ""


def closed_shard(name: str) -> str:
    """Return the shard that an object is, whole; empty for any other object."""
    folder, _, shard = name.rpartition("/")
    return shard if folder == SHARDS and ShardName.of(shard) is not None else ""


class FarShards:
    """The shards under an address, as one process sees and writes them.

    Args:
        folder: the working folder.
        store: what is under the address.
        uploads: what this process puts.
        before_put: called before anything is put: raises if it may not be.
    """

    def __init__(self, folder: Path, store: Store, uploads: Uploads, before_put: Callable[[], None]) -> None:
        self._folder = folder
        self._here_alone = Path(os.fspath(folder))
        """The same as a folder of this machine: stubs are read as what they are here."""
        self._store = store
        self._uploads = uploads
        self._before_put = before_put
        self._closed: set[str] = set()
        """In the store; here they are stubs."""
        self._here: set[str] = set()
        """Those of them that are whole here, too."""
        self._believed: set[str] = set()
        """Open ones of others."""
        self._pieces: dict[str, set[str]] = defaultdict(set)
        """In the store, of what this process fills, takes over, or finds closed."""
        self._count: dict[str, int] = defaultdict(int)
        self._arriving: dict[str, int] = defaultdict(int)
        """Of each shard, what is on its way."""
        self._then: dict[str, Callable[[], None]] = {}
        self._turn = threading.Lock()
        self._token = os.urandom(4).hex()

    # -- from there to here -------------------------------------------------------------------------------------------

    def forget_believed(self) -> None:
        """Begin to look anew, before what the store has is written into the working folder."""
        for shard in self._believed:
            for path in (shards.closed_path(self._folder, shard), shards.index_path(self._folder, shard)):
                path.unlink(missing_ok=True)
        self._believed.clear()

    def pull(self, found: Iterable[Found], takes_over: Callable[[str], bool]) -> None:
        """Make the shards of the working folder as the store's are; its indexes, and stubs of the closed ones, are there.

        Args:
            found: all objects.
            takes_over: of which parts of the job the open shards are fetched, and closed ones that have no index.

        Raises:
            StorageError: one cannot be read.
            OSError: the working folder cannot be written.
        """
        closed: dict[str, Found] = {}
        pieces: dict[str, list[Found]] = defaultdict(list)
        for each in found:
            if shard := closed_shard(each.name):
                closed[shard] = each
            elif shard := shard_of_piece(each.name):
                pieces[shard].append(each)
        self._closed, self._here = set(closed), self._here & closed.keys()
        for shard in set(shards.closed_shards(self._folder)) - closed.keys():
            shards.closed_path(self._folder, shard).unlink()
        for shard in shards.Shards(self._folder).doubtful:
            if not takes_over(ShardName.parse(shard).ledger_suffix):
                self._believe(shard, [closed[shard]])
            elif shard not in self._here:
                self._write(shards.closed_path(self._folder, shard), self._store.pieces(closed[shard], MOST_SHARD))
                self._here.add(shard)
        for shard, some in pieces.items():
            is_taken_over = takes_over(ShardName.parse(shard).ledger_suffix)
            if shard in closed or is_taken_over:
                self._pieces[shard] = {each.name for each in some}
            if shard not in closed and is_taken_over:
                self._fetch_open(shard, some)
            elif shard not in closed:
                self._believe(shard, some)

    def believe(self, found: Iterable[Found], is_meant: Callable[[str], bool]) -> None:
        """Learn of the shards of other parts, which write no more.

        Args:
            found: objects, with all that may be of shards.
            is_meant: of which parts.

        Raises:
            OSError: the working folder cannot be written.
        """
        some: dict[str, list[Found]] = defaultdict(list)
        for each in found:
            shard = closed_shard(each.name) or shard_of_piece(each.name)
            if shard and shard not in self._closed and is_meant(ShardName.parse(shard).ledger_suffix):
                some[shard].append(each)
        for shard, objects in some.items():
            self._believe(shard, objects)

    def _fetch_open(self, shard: str, pieces: Iterable[Found]) -> None:
        """A shard that was being filled, as one tar; where a piece did not arrive, its images are missing and no others."""
        in_order = sorted(pieces, key=lambda each: each.name)
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            data = in_window(pool, lambda each: b"".join(self._store.pieces(each, MOST_PIECE)), in_order, AT_A_TIME)
            self._write(shards.open_path(self._folder, shard), data)

    def _write(self, path: Path, data: Iterable[bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(path, "wb") as out:
            out.writelines(data)

    def _believe(self, shard: str, objects: Iterable[Found]) -> None:
        """Let a shard pass for a closed one that has all that lines say; nothing can be read from it."""
        size, modified = sum(each.size for each in objects) + 1, max(each.modified for each in objects)
        write_stub(shards.closed_path(self._folder, shard), size, modified)
        shards.index_path(self._folder, shard).parent.mkdir(parents=True, exist_ok=True)
        shards.write_index(self._here_alone, shard, size, {})
        self._believed.add(shard)

    def read(self, shard: str, name: str) -> bytes:
        """Return the bytes of an image.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        if shard not in self._closed or shard in self._here:
            return shards.read(self._folder, shard, name)
        with shards.opened(self._here_alone, shard, name) as (_, place):
            return self._store.part(f"{SHARDS}/{shard}", place.offset, place.size)

    # -- from here to there -------------------------------------------------------------------------------------------

    def add(self, shard: str, data: bytes, then: Callable[[], None]) -> None:
        """Put whole images of a shard that is being filled, in the background; `then` is called once they are there.

        Raises:
            StorageError: what was to be put before could not be, or somebody else has taken over.
        """
        self._before_put()
        with self._turn:
            name = f"{OPEN}{shard}/{self._count[shard]:08d}-{self._token}.tar"
            self._count[shard] += 1
            self._arriving[shard] += 1

        def there() -> None:
            with self._turn:
                self._pieces[shard].add(name)
            then()
            self._arrived(shard)

        self._uploads.add(name, data, there)

    def when_all_is_there(self, shard: str, then: Callable[[], None]) -> None:
        """Call something in the background, once all that was added to a shard is there.

        Raises:
            StorageError: as `add`.
        """
        self._before_put()
        with self._turn:
            self._arriving[shard] += 1
            self._then[shard] = then
        self._uploads.do(0, lambda: self._arrived(shard))

    def _arrived(self, shard: str) -> None:
        with self._turn:
            self._arriving[shard] -= 1
            then = self._then.pop(shard, None) if not self._arriving[shard] else None
        if then is not None:
            then()

    def put(self, shard: str) -> None:
        """Put a shard that was closed, or written anew, in the working folder; its pieces go, and of it a stub stays here.

        Raises:
            StorageError: it cannot be put.
            OSError: the working folder cannot be read.
        """
        self._before_put()
        path = shards.closed_path(self._folder, shard)
        self.put_index(shard)
        self._store.put_file(f"{SHARDS}/{shard}", path)
        write_stub(path, path.stat().st_size, datetime.now(UTC))
        with self._turn:
            self._closed.add(shard)
            self._here.discard(shard)
        self._drop_pieces([shard])

    def put_index(self, shard: str) -> None:
        """Put the index of a shard.

        Raises:
            StorageError: it cannot be put.
        """
        path = shards.index_path(self._folder, shard)
        self._store.put_file(f"{shards.HIDDEN}/{path.name}", path)

    def sync(self, is_mine: Callable[[str], bool]) -> None:
        """Remove from the store what went from the working folder, when nothing is filled: pieces of open shards, and closed
        ones.

        Args:
            is_mine: whether this process takes over a part of the job.

        Raises:
            StorageError: it cannot be removed.
        """
        mine = [shard for shard in self._pieces if is_mine(ShardName.parse(shard).ledger_suffix)]
        self._drop_pieces([shard for shard in mine if shard in self._closed or not self._is_here(shard)])
        gone = [shard for shard in self._closed if not shards.closed_path(self._folder, shard).exists()]
        gone = [shard for shard in gone if is_mine(ShardName.parse(shard).ledger_suffix)]
        names = [
            (f"{SHARDS}/{shard}", f"{shards.HIDDEN}/{shards.index_path(self._folder, shard).name}") for shard in gone
        ]
        self._store.delete([name for pair in names for name in pair])
        self._closed -= set(gone)

    def _is_here(self, shard: str) -> bool:
        """Whether the working folder has a shard, open or closed: what could not be put is in the store in pieces alone."""
        return any(place(self._folder, shard).exists() for place in (shards.open_path, shards.closed_path))

    def _drop_pieces(self, some: Iterable[str]) -> None:
        with self._turn:
            names = [name for shard in some for name in self._pieces.pop(shard, ())]
        self._store.delete(sorted(names))
