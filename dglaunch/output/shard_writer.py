"""Results go into shards as they are made (--store webdataset, parquet), by the one process that writes them.

What is written is added to a tar that is not shown yet. After a second at most (at once where images are paid for) it is brought
to the disk, and only then the images' ledger lines are written: an image that has a line survives the loss of the node. A shard
that is full is closed: as a tar it is ended and gets its name, as Parquet it is written anew, and the tar goes away. A
process that is killed leaves its tar good up to the last whole image; the next start closes it, with the lines that it lacks.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from dglaunch.atomic import temporary_path
from dglaunch.data.task import Record
from dglaunch.elsewhere import PathElsewhere
from dglaunch.files import open_for_appending, open_regular
from dglaunch.output import ownership, parquet_shards, shards, tar_shards
from dglaunch.output.far import far_of
from dglaunch.output.far_shards import PIECE_BYTES, PIECE_S
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.lines import append_whole, file_name_of
from dglaunch.output.shards import IMAGE_SHARD, Index, Place, ShardKind, ShardName
from dglaunch.output.tar_shards import Sample

SHARD_IMAGES = 10_000
SYNC_S = 1.0
"""A disk takes 1 to 15 ms to say that something is on it; so that fast models need not wait for it, images are brought there
together, after this time at most."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """How results are kept."""

    kind: ShardKind | None = None
    """None: each image is a file of its own."""
    shard_bytes: int = 1_000_000_000
    is_paid: bool = False
    """Whether no image may be lost that was written, not even for a second."""

    @property
    def store(self) -> str:
        """As --store names it."""
        return self.kind or "files"


AS_FILES = Keeping()


class ShardWriter:
    """A ShardWriter adds images to the shards of one part of a job; what it is called for may come from any thread.

    Args:
        folder: the output folder.
        keeping: how results are kept.
        ledger_suffix: the part of the job.
        add_line: writes the ledger line of an image that is safe.
        sync_lines: brings the lines to the disk.
    """

    def __init__(
        self,
        folder: OutputFolder,
        keeping: Keeping,
        ledger_suffix: str,
        add_line: Callable[[Record], None],
        sync_lines: Callable[[], None] = lambda: None,
    ) -> None:
        assert keeping.kind is not None, "images are not files of their own"
        self._folder = folder
        self._kind = keeping.kind
        self._most_bytes = keeping.shard_bytes
        self._far = far_of(folder.path)
        self._wait = 0.0 if keeping.is_paid else SYNC_S if self._far is None else PIECE_S
        self._suffix = ledger_suffix
        self._add_line = add_line
        self._sync_lines = sync_lines
        self._open: _OpenShard | None = None
        self._pending: list[Record] = []
        """Lines of images that are not safe yet."""
        self._synced = 0.0
        self._timer: threading.Timer | None = None
        self._failed: OSError | None = None
        """What went wrong in the timer's thread."""
        self._turn = threading.RLock()

    def add(self, record: Record, image: bytes) -> str:
        """Add an image, and return the name of its shard. Its line is written when it is safe.

        Args:
            record: its ledger line.

        Raises:
            OSError: it, or what was added before it, cannot be written.
        """
        data = tar_shards.sample_bytes(tar_shards.key_of(record), record, image)
        with self._turn:
            self._raise_failure()
            if self._open is not None and self._open.is_full(len(data), self._most_bytes):
                self._close_shard()
            if self._open is None:
                self._open = _OpenShard.begun(self._folder, self._suffix, self._kind)
            self._open.add(data)
            self._pending.append({**record, IMAGE_SHARD: self._open.name})
            if time.monotonic() - self._synced >= self._wait or (self._far is not None and self._open.is_heavy):
                self._sync()
            elif self._timer is None:
                self._timer = threading.Timer(self._wait, self._sync_in_time)
                self._timer.daemon = True
                self._timer.start()
            return self._open.name

    def settle(self) -> None:
        """Close what is open: nothing more comes in this start.

        Raises:
            OSError: it cannot be written; what is there is whole, and the next start goes on with it.
        """
        with self._turn:
            self._raise_failure()
            self._close_shard()

    def abandon(self) -> None:
        """Leave an open shard as it is, for the next start."""
        with self._turn:
            self._stop_timer()
            if self._open is not None:
                self._open.stream.close()
            self._open = None

    def _sync_in_time(self) -> None:
        with self._turn:
            self._timer = None
            try:
                self._sync()
            except OSError as error:
                self._failed = error

    def _raise_failure(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sync(self) -> None:
        """Bring to the disk what was added, and write its lines; or put it, and write them when it is there."""
        if self._open is None:
            return
        if self._far is None:
            os.fdatasync(self._open.stream.fileno())
            self._add_lines(self._pending)
        elif self._pending:
            lines, self._pending = self._pending, []
            self._far.shards.add(self._open.name, self._open.not_put(), partial(self._add_lines, lines))
        self._synced = time.monotonic()

    def _add_lines(self, lines: list[Record]) -> None:
        while lines:
            self._add_line(lines[0])
            del lines[0]

    def _close_shard(self) -> None:
        self._stop_timer()
        if self._open is None:
            return
        self._sync()
        self._open.stream.close()
        close_it = partial(self._close_filled, self._open.name)
        if self._far is None:
            close_it()
        else:
            self._far.shards.when_all_is_there(self._open.name, close_it)
        self._open = None

    def _close_filled(self, shard: str) -> None:
        self._sync_lines()
        close(self._folder, shard)


class _OpenShard:
    """A shard that is being filled."""

    def __init__(self, folder: OutputFolder, name: ShardName) -> None:
        self.name = str(name)
        self._folder = folder.path
        self.stream = open_for_appending(shards.open_path(folder.path, self.name))
        self._size = 0
        self._count = 0
        self._put_up_to = 0
        """Of a shard in an object store."""

    @property
    def is_heavy(self) -> bool:
        """Whether so much of it was added that it should be put."""
        return self._size - self._put_up_to >= PIECE_BYTES

    def not_put(self) -> bytes:
        """Return what was added since this was asked last."""
        with open_regular(shards.open_path(self._folder, self.name)) as file:
            data = os.pread(file.fileno(), self._size - self._put_up_to, self._put_up_to)
        self._put_up_to = self._size
        return data

    @classmethod
    def begun(cls, folder: OutputFolder, ledger_suffix: str, kind: ShardKind) -> "_OpenShard":
        """Return an empty one, on the disk as a name, with the next number of its part."""
        hidden, shown = folder.path / shards.HIDDEN, folder.path / shards.SHARDS
        for path in (hidden, shown):
            ownership.make_folder(path)
        opened = cls(folder, ShardName(next_number(folder, ledger_suffix), ledger_suffix, kind))
        for path in (folder.path, hidden):
            _sync_folder(path)
        return opened

    def is_full(self, more: int, most_bytes: int) -> bool:
        return self._count == SHARD_IMAGES or (self._count > 0 and self._size + more > most_bytes)

    def add(self, data: bytes) -> None:
        append_whole(self.stream, data)
        self._size += len(data)
        self._count += 1


def next_number(folder: OutputFolder, ledger_suffix: str) -> int:
    """Return the first number that no shard of a part has, nor any of those before it."""
    places = (folder.path / shards.SHARDS, folder.path / shards.HIDDEN)
    found = [name for place in places if place.is_dir() for name in os.listdir(place)]
    names = [ShardName.of(name.removesuffix(".open").removesuffix(".json")) for name in found]
    return 1 + max((name.number for name in names if name and name.ledger_suffix == ledger_suffix), default=-1)


# -- closing ------------------------------------------------------------------------------------------------------


def close(folder: OutputFolder, shard: str, found: Sequence[Sample] | None = None) -> None:
    """Make of a shard that is filled what loaders read, with its index. The lines of its images are on the disk.

    Args:
        found: its images, if they are known; without any it goes away.

    Raises:
        OSError: it cannot be written; it stays what it is.
    """
    filled, name = shards.open_path(folder.path, shard), ShardName.parse(shard)
    found = shards.samples_of(folder.path, shard) if found is None else found
    if found and name.kind == "webdataset":
        end = found[-1].end
        with open_for_appending(filled) as stream:
            os.ftruncate(stream.fileno(), end)
            append_whole(stream, tar_shards.end_bytes(end))
        places = {each.name: Place(each.offset, each.size) for each in found}
        _index_and_publish(folder, shard, filled, places)
    elif found:
        with _temporary(folder, name) as temporary, open_regular(filled) as file:
            parquet_shards.write(temporary, ((each.record, _bytes_at(file, each)) for each in found))
            _index_and_publish(folder, shard, temporary, _places_in_parquet(temporary))
    ownership.remove([filled])


def _bytes_at(file: BinaryIO, place: Sample | Place) -> bytes:
    return os.pread(file.fileno(), place.size, place.offset)


def _places_in_parquet(path: Path) -> Index:
    return {file_name_of(record): Place(offset, size) for record, offset, size in parquet_shards.places(path)}


@contextmanager
def _temporary(folder: OutputFolder, name: ShardName) -> Iterator[Path]:
    """A name in the folder itself, where the next start finds what a killed run left; it is given its place in the block."""
    temporary = temporary_path(folder.path, name.ledger_suffix)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _index_and_publish(folder: OutputFolder, shard: str, source: Path, places: Index) -> None:
    """The index first: one that is not of its shard, as after a kill between the two, is not looked at."""
    shards.write_index(folder.path, shard, source.stat().st_size, places)
    publish(folder, shard, source)


def publish(folder: OutputFolder, shard: str, source: Path) -> None:
    """Give a whole shard its place among the results, in one step. All shards that are closed, or written anew, come through
    here, and through nothing else.

    Raises:
        OSError: it cannot be done.
    """
    with open_regular(source) as file:
        os.fsync(file.fileno())
    target = shards.closed_path(folder.path, shard)
    ownership.make_folder(target.parent)
    os.replace(source, target)
    for place in (target.parent, folder.path):
        _sync_folder(place)
    if (far := far_of(folder.path)) is not None:
        far.shards.put(shard)


def _sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# -- after a kill -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Remains:
    """A shard that a killed process was filling."""

    folder: Path
    """The output folder."""
    shard: str
    samples: list[Sample]
    """Its images, up to the first that is not whole."""
    without_line: list[Record]
    """Those of its lines that the ledger does not have."""
    superseded: list[Record] = field(default_factory=list)
    """Those of these whose image is elsewhere by now, or not as it was written: a node that is lost may leave a file's length
    before its bytes."""

    @property
    def missing_lines(self) -> list[Record]:
        """The lines that the ledger lacks."""
        return [record for record in self.without_line if record not in self.superseded]


def remains_of(
    folder: OutputFolder, with_line: Mapping[str, Collection[str]], is_mine: Callable[[str], bool]
) -> list[Remains]:
    """Return what killed processes left of the shards that they were filling. (One that was closed and not yet removed has
    nothing to say.)

    Args:
        with_line: of each shard the names of the images in it that have a ledger line; they were brought to the disk.
        is_mine: whether this process takes over a part of the job.
    """
    closed = shards.closed_shards(folder.path)
    found = [shard for shard in with_line if shard not in closed and is_mine(ShardName.parse(shard).ledger_suffix)]
    return [_remains(folder, shard, with_line[shard]) for shard in found]


def _remains(folder: OutputFolder, shard: str, with_line: Collection[str]) -> Remains:
    with open_regular(shards.open_path(folder.path, shard)) as file:
        found = Remains(folder.path, shard, list(tar_shards.samples(file)), [])
        for each in found.samples:
            if each.name not in with_line:
                found.without_line.append({**each.record, IMAGE_SHARD: shard})
                if hashlib.sha256(_bytes_at(file, each)).hexdigest() != each.record["sha256"]:
                    found.superseded.append(found.without_line[-1])
    return found


def settle_remains(folder: OutputFolder, remains: Sequence[Remains], is_mine: Callable[[str], bool]) -> None:
    """Close what killed processes of these parts left; their lines are on the disk. A closed shard that cannot be read is moved
    aside: its images are made again.

    Args:
        is_mine: whether this process takes over a part.

    Raises:
        OSError: it cannot be written.
    """
    for each in remains:
        close(folder, each.shard, each.samples)
        if each.superseded:
            drop(folder, each.shard, {file_name_of(record) for record in each.superseded})
    for shard in shards.open_shards(folder.path):
        if is_mine(ShardName.parse(shard).ledger_suffix) and shards.closed_path(folder.path, shard).exists():
            ownership.remove([shards.open_path(folder.path, shard)])  # the process died after it was closed
    for shard in shards.Shards(folder.path).doubtful:
        if is_mine(ShardName.parse(shard).ledger_suffix):
            _index_or_set_aside(folder, shard)


def _index_or_set_aside(folder: OutputFolder, shard: str) -> None:
    try:
        images = shards.index_of(folder.path, shard)
    except (OSError, ValueError):
        ownership.set_aside(folder, shards.closed_path(folder.path, shard))
        return
    ownership.make_folder(folder.path / shards.HIDDEN)
    shards.write_index(folder.path, shard, shards.closed_path(folder.path, shard).stat().st_size, images)
    if (far := far_of(folder.path)) is not None:
        far.shards.put_index(shard)


# -- of another folder --------------------------------------------------------------------------------------------


def take_over(folder: OutputFolder, other: Path, shard: str) -> str:
    """Link or copy a closed shard of another output folder, and return its name here.

    Raises:
        OSError: it cannot be done.
    """
    for place in (shards.HIDDEN, shards.SHARDS):
        ownership.make_folder(folder.path / place)
    name = ShardName(next_number(folder, ""), "", ShardName.parse(shard).kind)
    with _temporary(folder, name) as temporary:
        ownership.link_or_copy(shards.closed_path(other, shard), temporary)
        _index_and_publish(folder, str(name), temporary, shards.index_of(other, shard))
    return str(name)


# -- written anew -------------------------------------------------------------------------------------------------


def drop(folder: OutputFolder, shard: str, names: Collection[str]) -> None:
    """Write a closed shard anew without some of its images; one that would be empty goes away.

    Raises:
        OSError: it cannot be written; it stays as it was.
        ValueError: it is damaged.
    """
    path, name = shards.closed_path(folder.path, shard), ShardName.parse(shard)
    if isinstance(path, PathElsewhere):
        path.bring()
    kept = [
        (record, place) for record, place in shards.contents(folder.path, shard) if file_name_of(record) not in names
    ]
    if not kept:
        ownership.remove([path, shards.index_path(folder.path, shard)])
        return
    with _temporary(folder, name) as temporary, open_regular(path) as file:
        images = ((record, _bytes_at(file, place)) for record, place in kept)
        if name.kind == "parquet":
            parquet_shards.write(temporary, images)
            places = _places_in_parquet(temporary)
        else:
            tar_shards.write(temporary, ((tar_shards.key_of(record), record, data) for record, data in images))
            with open_regular(temporary) as written:
                places = {each.name: Place(each.offset, each.size) for each in tar_shards.samples(written)}
        _index_and_publish(folder, shard, temporary, places)


def drop_replaced(folder: OutputFolder, where: Mapping[str, str]) -> None:
    """Take out of closed shards the images that are in another one by now.

    Args:
        where: the shard of each image that was made anew, by its name.

    Raises:
        OSError: a shard cannot be written.
    """
    for shard in shards.closed_shards(folder.path):
        names = {name for name in shards.index_of(folder.path, shard) if where.get(name, shard) != shard}
        if names:
            drop(folder, shard, names)
