"""The shards of an output folder (--store): how they are called, what is in them, and how one image is read from them.

    shards/00000.tar                            closed: whole, with all its images
    shards/00000-rank3of8.parquet               the same of a rank that writes for itself
    .dglaunch-shards/00001.tar.open             being filled: a tar in any case, which a kill leaves good up to its last image
    .dglaunch-shards/00000.tar.json             the index of a closed one: where the bytes of each image are

A ledger line names the shard of its image (`image_shard`), which it keeps from the first moment: only where that lies, and in
which form, changes when it is closed. The index is made with the shard; without it (a copy of the folder may lack what begins
with a dot) the shard itself is looked through.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from dglaunch import strict_json
from dglaunch.atomic import TEMPORARY, atomic_write
from dglaunch.data.task import Record
from dglaunch.files import is_regular, open_regular, read_bytes
from dglaunch.output import parquet_shards, tar_shards
from dglaunch.output.lines import file_name_of

ShardKind = Literal["webdataset", "parquet"]
ENDINGS: dict[ShardKind, str] = {"webdataset": ".tar", "parquet": ".parquet"}
"""Of the shards of each --store."""
IMAGE_SHARD = "image_shard"
"""What a ledger line calls the shard of its image."""
SHARDS = "shards"
"""The folder, in the output folder, of those that are closed: what a loader is given."""
HIDDEN = f"{TEMPORARY}shards"
OPEN, _INDEX = ".open", ".json"
_NAME = re.compile(r"(\d{5,9})((?:-node\d{1,9}of\d{1,9})?(?:-rank\d{1,9}of\d{1,9})?)(\.tar|\.parquet)", re.ASCII)
MOST_INDEX = 1 << 28


class Place(NamedTuple):
    """Where the bytes of an image are in the file of its shard."""

    offset: int
    size: int


Index = Mapping[str, Place]
"""The images of a shard, by their file names."""


class ShardName(NamedTuple):
    """The name of a shard, taken apart."""

    number: int
    ledger_suffix: str
    """The part of the job that wrote it."""
    kind: ShardKind

    @classmethod
    def of(cls, name: str) -> "ShardName | None":
        """Return what a name says, or None if it is none of a shard of dglaunch's."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        kind: ShardKind = "webdataset" if found[3] == ENDINGS["webdataset"] else "parquet"
        return cls(int(found[1]), found[2], kind)

    @classmethod
    def parse(cls, name: str) -> "ShardName":
        """Return what the name of a shard says."""
        found = cls.of(name)
        assert found is not None, f"{name} was taken for a shard"
        return found

    def __str__(self) -> str:
        return f"{self.number:05d}{self.ledger_suffix}{ENDINGS[self.kind]}"


def shard_of(record: Record) -> str:
    """Return the name of the shard that a ledger line says its image is in; empty for an image that is a file of its own."""
    name = record.get(IMAGE_SHARD)
    return name if isinstance(name, str) and _NAME.fullmatch(name) else ""


def store_of(shard: str) -> str:
    """Return how an image is kept that is in this shard (empty: a file of its own), as --store names it."""
    name = ShardName.of(shard)
    return "files" if name is None else name.kind


def closed_path(folder: Path, shard: str) -> Path:
    return folder / SHARDS / shard


def open_path(folder: Path, shard: str) -> Path:
    return folder / HIDDEN / (shard + OPEN)


def index_path(folder: Path, shard: str) -> Path:
    return folder / HIDDEN / (shard + _INDEX)


def closed_shards(folder: Path) -> list[str]:
    """Return the names of the closed shards of an output folder."""
    return _names_in(folder / SHARDS, "")


def open_shards(folder: Path) -> list[str]:
    """Return the names of those that are being filled, or were when their process died."""
    return _names_in(folder / HIDDEN, OPEN)


def has_shards(folder: Path) -> bool:
    """Return whether the images of an output folder are in shards."""
    return bool(closed_shards(folder) or open_shards(folder))


def has_own(folder: Path) -> bool:
    """Return whether dglaunch has filled shards here."""
    return (folder / HIDDEN).is_dir() and not (folder / HIDDEN).is_symlink()


def _names_in(folder: Path, ending: str) -> list[str]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    names = [name.removesuffix(ending) for name in os.listdir(folder) if name.endswith(ending)]
    return sorted(name for name in names if _NAME.fullmatch(name) and is_regular(folder / (name + ending)))


# -- what is in one -----------------------------------------------------------------------------------------------


def samples_of(folder: Path, shard: str) -> list[tar_shards.Sample]:
    """Return the whole images of a shard that is being filled; none if there is no such shard any more."""
    with suppress(FileNotFoundError), open_regular(open_path(folder, shard)) as file:
        return list(tar_shards.samples(file))
    return []


def contents(folder: Path, shard: str) -> Iterator[tuple[Record, Place]]:
    """Yield the ledger line that a closed shard has of each of its images, and where that is in it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    path = closed_path(folder, shard)
    if path.suffix == ENDINGS["parquet"]:
        yield from ((record, Place(offset, size)) for record, offset, size in parquet_shards.places(path))
        return
    with open_regular(path) as file:
        end = 0
        for sample in tar_shards.samples(file):
            end = sample.end
            yield sample.record, Place(sample.offset, sample.size)
        if os.fstat(file.fileno()).st_size != end + len(tar_shards.end_bytes(end)):
            raise ValueError("it is not whole")


def write_index(folder: Path, shard: str, size: int, images: Index) -> None:
    """Write the index of a shard that is, or is about to be, closed. Its first line tells whether the shard is as it was.

    Raises:
        OSError: it cannot be written.
    """
    head = strict_json.dumps({"bytes": size, "images": len(images)})
    with atomic_write(index_path(folder, shard)) as temporary:
        temporary.write_text(f"{head}\n{strict_json.dumps(dict(images), compact=True)}\n", encoding="utf-8")


def index_of(folder: Path, shard: str) -> Index:
    """Return where the images of a closed shard are.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    info = closed_path(folder, shard).stat()
    return _index_of(folder, shard, info.st_ino, info.st_size, info.st_mtime_ns)


@lru_cache(maxsize=32)
def _index_of(folder: Path, shard: str, inode: int, size: int, changed: int) -> Index:
    """It is looked up once as long as the file stays what it is."""
    known = _read_index(index_path(folder, shard), size)
    if known is not None:
        return known
    try:
        return {file_name_of(record): place for record, place in contents(folder, shard)}
    except Exception as error:  # pyarrow's are of many kinds
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{SHARDS}/{shard} is damaged: {error}") from None


def _read_index(path: Path, size: int) -> Index | None:
    """What an index file says of a shard of so many bytes; None if there is none of it. Anyone may have written it."""
    try:
        lines = read_bytes(path, MOST_INDEX).split(b"\n") if is_regular(path) else []
        head, found = (strict_json.loads(line) for line in lines[:2])
    except (OSError, ValueError):
        return None
    if not isinstance(head, dict) or head.get("bytes") != size or not isinstance(found, dict):
        return None
    places = {name: Place(*place) for name, place in found.items() if _is_place(place, size)}
    return places if len(places) == head.get("images") else None


def _is_place(found: object, size: int) -> bool:
    return (
        isinstance(found, list)
        and [type(each) for each in found] == [int, int]
        and 0 <= found[0] <= found[0] + found[1] <= size
    )


@lru_cache(maxsize=32)
def _open_index_of(folder: Path, shard: str, inode: int, size: int, changed: int) -> Index:
    """Of one that is being filled, as far as it is."""
    return {each.name: Place(each.offset, each.size) for each in samples_of(folder, shard)}


# -- one image ----------------------------------------------------------------------------------------------------


def read(folder: Path, shard: str, name: str) -> bytes:
    """Return the bytes of an image that is in a shard, closed or not.

    Raises:
        OSError: it cannot be read, or is not in its shard.
    """
    with opened(folder, shard, name) as (file, place):
        data = os.pread(file.fileno(), place.size, place.offset)
    if len(data) != place.size:
        raise OSError(errno.EIO, "its shard became shorter", f"{shard}: {name}")
    return data


@contextmanager
def opened(folder: Path, shard: str, name: str) -> Iterator[tuple[BinaryIO, Place]]:
    """Give the file of a shard, open, and where in it an image is.

    Raises:
        OSError: it cannot be read, or the image is not in it.
    """
    if ShardName.of(shard) is None or (folder / SHARDS).is_symlink() or (folder / HIDDEN).is_symlink():
        raise FileNotFoundError(errno.ENOENT, f"{shard} is no shard", name)
    # It may be closed between two of these looks.
    for path, look_up in ((closed_path(folder, shard), _index_of), (open_path(folder, shard), _open_index_of)) * 2:
        try:
            file = open_regular(path) if is_regular(path) else None
        except FileNotFoundError:
            continue
        if file is not None:
            with file:
                yield file, _place_in(folder, shard, name, os.fstat(file.fileno()), look_up)
            return
    raise FileNotFoundError(errno.ENOENT, f"{SHARDS}/{shard} is not there", name)


def _place_in(
    folder: Path, shard: str, name: str, info: os.stat_result, look_up: Callable[[Path, str, int, int, int], Index]
) -> Place:
    try:
        place = look_up(folder, shard, info.st_ino, info.st_size, info.st_mtime_ns).get(name)
    except ValueError as error:
        raise OSError(errno.EIO, str(error), name) from None
    if place is None or place.offset + place.size > info.st_size:
        raise FileNotFoundError(errno.ENOENT, f"it is not in {SHARDS}/{shard}", name)
    return place


# -- all of a folder ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Shards:
    """The shards of a folder as they were when they were looked at, once for all images."""

    folder: Path
    _whole: dict[str, bool]
    _opened: dict[str, dict[str, int]]
    _times: dict[str, float]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._whole = {shard: self._is_whole(shard) for shard in closed_shards(folder)}
        opened = [shard for shard in open_shards(folder) if shard not in self._whole]
        self._opened = {shard: {each.name: each.size for each in samples_of(folder, shard)} for shard in opened}
        self._times = {}
        for path in (*map(partial(open_path, folder), opened), *map(partial(closed_path, folder), self._whole)):
            with suppress(FileNotFoundError):  # it is closed just now
                self._times[path.name.removesuffix(OPEN)] = path.stat().st_mtime

    @property
    def doubtful(self) -> list[str]:
        """The closed ones that have no index, or another length than it says."""
        return [shard for shard, whole in self._whole.items() if not whole]

    def _is_whole(self, shard: str) -> bool:
        """Whether it is known without a look at each image: a shard is closed as a whole, and its index says how long it is."""
        try:
            with open_regular(index_path(self.folder, shard)) as file:
                head = strict_json.loads(file.readline(1 << 10))
            return isinstance(head, dict) and head.get("bytes") == closed_path(self.folder, shard).stat().st_size
        except (OSError, ValueError):
            return False

    def has(self, shard: str, name: str, size: int) -> bool:
        """Return whether an image of so many bytes is in its shard."""
        return 0 < size == self.size(shard, name, size)

    def time(self, shard: str) -> float:
        """Return when a shard was written last; 0 if it is not there."""
        return self._times.get(shard, 0.0)

    def size(self, shard: str, name: str, expected: object) -> int | None:
        """Return how many bytes an image has in its shard; None if it is not there.

        Args:
            expected: what its line says.
        """
        if shard in self._opened:
            return self._opened[shard].get(name)
        if self._whole.get(shard) and isinstance(expected, int):
            return expected
        if shard in self._whole:
            with suppress(OSError, ValueError):
                place = index_of(self.folder, shard).get(name)
                return place.size if place is not None else None
        return None
