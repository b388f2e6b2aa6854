"""The image of a ledger line, wherever --store has put it: the one place that finds and reads it.

image_of(folder, record).read()
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from dglaunch.addresses import Address, path_or_address
from dglaunch.data.task import Record
from dglaunch.files import is_regular, read_bytes
from dglaunch.output import far, shards
from dglaunch.output.ledger import RUN, OutputFolder
from dglaunch.output.lines import file_name_of, is_whole
from dglaunch.output.ownership import path_inside


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image: a file of its own, or a part of a shard."""

    folder: Path
    name: str
    """Its file name; in a shard it has it, too."""
    shard: str = ""

    @property
    def path(self) -> Path:
        """The file that holds it: its own, or that of its shard."""
        return shards.closed_path(self.folder, self.shard) if self.shard else self.folder / self.name

    def read(self) -> bytes:
        """Return its bytes.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        if (there := far.far_of(self.folder)) is not None:
            return there.read(self.name, self.shard)
        return shards.read(self.folder, self.shard, self.name) if self.shard else read_bytes(self.folder / self.name)

    def read_own(self) -> bytes:
        """The same, where no link is followed.

        Raises:
            OSError: it is not there, a link, or cannot be read.
        """
        if not self.shard and not is_regular(self.folder / self.name):
            raise FileNotFoundError(self.folder / self.name)
        return self.read()

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.name} in {self.path}" if self.shard else str(self.path)


def image_of(folder: Path, record: Record) -> StoredImage | None:
    """Return the image of a ledger line; None if it is that of a failure, or names a file outside of the folder."""
    name = path_inside(record.get("file_name"))
    return StoredImage(folder, name, shards.shard_of(record)) if name is not None else None


def opened_to_read(file: Path) -> Path:
    """Return an image that is looked at: of an address, its file in the working folder of the results that it is one of.

    Raises:
        UserError: the store cannot be read.
    """
    address = path_or_address(file)
    if not isinstance(address, Address):
        return file
    for folder in (address.parent, address.parent.parent):  # it may lie in one of the folders of images
        working = far.opened_to_read(folder)
        if OutputFolder(working).files(RUN):
            break
    return working / str(address.relative_to(folder))


def bytes_of(file: Path) -> bytes:
    """Return the bytes of a file; or, where there is none, of the image that its folder has in a shard under this name.

    Raises:
        OSError: there is neither, or it cannot be read.
    """
    if not file.exists():
        for record in OutputFolder(file.parent).records():
            if file_name_of(record) == file.name and shards.shard_of(record):
                return StoredImage(file.parent, file.name, shards.shard_of(record)).read()
    return read_bytes(file)


def written_at(record: Record, changed: float) -> float:
    """Return when the image of a ledger line was written.

    Args:
        changed: when its file, or that of its shard, was changed.
    """
    said = record.get("time")
    if shards.shard_of(record) and isinstance(said, str):
        with suppress(ValueError):
            return datetime.fromisoformat(said).timestamp()
    return changed


def is_as_its_line_says(folder: Path, record: Record) -> bool:
    """Return whether the image of a ledger line has the very bytes that it had."""
    image = image_of(folder, record)
    try:
        return image is not None and hashlib.sha256(image.read_own()).hexdigest() == record["sha256"]
    except OSError:
        return False


class Present:
    """Which images of a folder are there in full; the folder is looked at once, for all of them."""

    def __init__(self, folder: OutputFolder) -> None:
        self.files = folder.regular_files()
        """What the system says of each file of the folder."""
        self._shards = shards.Shards(folder.path)

    def has(self, record: Record) -> bool:
        """Return whether the image of a ledger line is there, as long as its line says."""
        return is_whole(record, self._size(record))

    def is_there(self, record: Record) -> bool:
        """Return whether there is anything in its place."""
        return self._size(record) is not None

    def _size(self, record: Record) -> int | None:
        name = file_name_of(record)
        if shard := shards.shard_of(record):
            return self._shards.size(shard, name, record.get("bytes"))
        return self.files[name].st_size if name in self.files else None
