"""Shards as tar files, as WebDataset reads them: of each image its file, its prompt (.txt) and its ledger line (.json).

    000017.png, 000017.txt, 000017.json, 000018.png, ...

Files of one key stand together, and the line comes last: an image is whole in a shard where its line is. So a shard that a
killed process was writing is good up to its last whole line.
"""

import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from dglaunch import strict_json
from dglaunch.data.task import Record
from dglaunch.output.lines import MOST_LINE, file_name_of, id_of, result_of


def key_of(record: Record) -> str:
    """Return what an image's files are called in a shard: as its own file where that is named by its number. A name that a
    table gave may have a dot, and what follows the first dot is the kind of a file."""
    stem, (index, sample) = PurePosixPath(file_name_of(record)).stem, id_of(record)
    whole = f"{index:06d}_{sample:02d}"
    return stem if stem in (f"{index:06d}", whole) else whole


def sample_bytes(key: str, record: Record, image: bytes) -> bytes:
    """Return all that a shard holds of an image.

    Args:
        key: what its files are called.
        record: its ledger line.
        image: the bytes of its file.
    """
    suffix = PurePosixPath(file_name_of(record)).suffix
    members = {
        suffix: image,
        ".txt": str(record.get("prompt", "")).encode(),
        ".json": (strict_json.dumps(record) + "\n").encode(),
    }
    return b"".join(_member(key + kind, data) for kind, data in members.items())


def write(target: Path, images: Iterable[tuple[str, Record, bytes]]) -> None:
    """Write a whole shard of images: key, ledger line and bytes of each."""
    with target.open("wb") as out:
        for key, record, image in images:
            out.write(sample_bytes(key, record, image))
        out.write(end_bytes(out.tell()))


def _member(name: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf() + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def end_bytes(size: int) -> bytes:
    """Return what ends a shard of so many bytes: two empty blocks, and more up to a whole record of tar."""
    least = 2 * tarfile.BLOCKSIZE
    return bytes(least + -(size + least) % tarfile.RECORDSIZE)


class Sample(NamedTuple):
    """An image in a shard."""

    record: Record
    """Its ledger line."""
    offset: int
    """Where the bytes of the image begin."""
    size: int
    line: int
    """Where its ledger line begins; it has a newline, as in a ledger."""
    end: int
    """Where all of it ends."""

    @property
    def name(self) -> str:
        return file_name_of(self.record)


def samples(shard: BinaryIO) -> Iterator[Sample]:
    """Yield the whole images of a shard, up to its end or to the first that is torn. Anyone may have written it."""
    image: tuple[str, int, int] | None = None
    for name, offset, size, end in _members(shard):
        key, _, kind = name.rpartition(".")
        if kind not in ("txt", "json"):
            image = key, offset, size
        elif kind == "json" and size <= MOST_LINE:
            record = result_of(os.pread(shard.fileno(), size, offset))
            if record is None or image is None or (key, record["bytes"]) != (image[0], image[2]):
                return
            yield Sample(record, *image[1:], offset, end)
            image = None


def _members(shard: BinaryIO) -> Iterator[tuple[str, int, int, int]]:
    """Name, place, size and end of each file in a tar."""
    size_of_shard, at = os.fstat(shard.fileno()).st_size, 0
    while True:
        try:
            info = tarfile.TarInfo.frombuf(os.pread(shard.fileno(), tarfile.BLOCKSIZE, at), "utf-8", "surrogateescape")
        except tarfile.HeaderError:  # its end, or where it is torn
            return
        offset = at + tarfile.BLOCKSIZE
        at = offset + info.size + -info.size % tarfile.BLOCKSIZE
        if info.size < 0 or at > size_of_shard:
            return
        yield info.name, offset, info.size, at
