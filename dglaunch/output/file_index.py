"""The columns of one file of ledger lines, kept beside the segments, so that a start need not read its lines again.

    .dglaunch-ledger/000007-rank3of8-9f3c2a1b.index     of a closed segment
    .dglaunch-ledger/0001.index, metadata.index         of a public view, when the job has ended

An index says nothing that the lines do not say. It holds for a file of the size and the time that it names, and is read only
then; where it is missing, torn, older or somebody else's, the lines are read instead. So it can be lost or deleted at any time.
Files with a line that is not a whole one of ours have none.

It is a NumPy archive: a million rows are read in a second and take 40 MB, as Parquet, but without pyarrow; SQLite took 10 s and
48 MB (kernels_bench/results).
"""

import re
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dglaunch.atomic import atomic_write
from dglaunch.data.task import Record
from dglaunch.files import is_regular, open_regular
from dglaunch.output.lines import (
    FOLDER,
    IMAGE_SUFFIXES,
    MOST_SAMPLE,
    LedgerFile,
    LineKind,
    file_name_of,
    id_of,
    row_key_of,
    scan_places,
)
from dglaunch.output.segments import FOLDER as FOLDER_OF_SEGMENTS
from dglaunch.output.segments import INDEX
from dglaunch.output.shards import shard_of

Ints = npt.NDArray[np.integer[Any]]
Columns = dict[str, npt.NDArray[Any]]
KINDS = {"index": "<i8", "sample": "<i4", "key": "<u8", "size": "<i8", "start": "<i8", "folder": "<i4"}
"""The columns, by name: index and sample, the key of the row, bytes of the image, the byte at which the line begins, and the number
of the folder of images that it is in (AT_TOP: in none; IN_SHARD: it is part of a shard)."""
AT_TOP, IN_SHARD = -1, -2
FORMAT = 1
"""Of the files; one of another number is not read."""
MOST_NAME = 400
"""Bytes of a name with its folder, at most."""
_SUFFIXES = "|".join(re.escape(suffix[1:]) for suffix in IMAGE_SUFFIXES).encode()
_NAMES = re.compile(
    rb"(?:(?:"
    + FOLDER.encode()
    + rb"/)?[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,254}\.(?:"
    + _SUFFIXES
    + rb")(?:\t[\w.-]{1,99})?\n)*+"
)


@dataclass(slots=True)
class FileIndex:
    """The lines of a file that are of ours, as columns; and how many others there are.

    Of lines about an image that a later line of the same file has replaced (`dglaunch redo`) nothing is here.
    """

    ledger: LedgerFile
    columns: Columns
    """By the names of KINDS, each as long as the others."""
    packed: bytes
    """The images' names, as they are seen from the output folder."""
    num_bad: int = 0
    num_foreign: int = 0
    num_torn: int = 0
    """1: the last line has no newline."""
    num_replaced: int = 0
    num_too_long: int = 0
    """Lines that are longer than dglaunch writes one."""
    state: tuple[int, int, int] = (0, 0, 0)
    """What tells whether the file is as it was when this was read."""
    is_kept: bool = False
    """It was read from what is kept of the file."""

    def __len__(self) -> int:
        return len(self.columns["index"])

    def names(self) -> list[str]:
        """Return the names of the images, in the order of the rows; of one in a shard followed by a tab and the shard's."""
        return _unpacked(self.packed, len(self)).decode().split("\n")[:-1]

    @property
    def is_clean(self) -> bool:
        """Whether all its lines are whole and ours, so that the columns say all there is to say."""
        return not (self.num_bad or self.num_foreign or self.num_torn or self.num_replaced or self.num_too_long)

    # -- from the lines -------------------------------------------------------------------------------------------

    @classmethod
    def of_lines(cls, ledger: LedgerFile) -> "FileIndex":
        """Return it as the file says it, line by line.

        Raises:
            UserError: the file cannot be read.
        """
        rows, state = Rows(), state_of(ledger)
        found = dict.fromkeys(LineKind, 0)
        num_torn = 0
        for start, line in scan_places(*ledger):
            found[line.kind] += 1
            num_torn += line.is_torn
            if line.kind is LineKind.OURS:
                rows.add(line.record, start)
        return cls(
            ledger, rows.columns(), rows.packed(), found[LineKind.BAD], found[LineKind.FOREIGN], num_torn,
            found[LineKind.REPLACED], found[LineKind.TOO_LONG], state,
        )  # fmt: skip

    # -- kept -----------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, ledger: LedgerFile, kept: Path) -> "FileIndex":
        """Return what is kept of a file as it is, or else what its lines say.

        Raises:
            UserError: the file cannot be read.
        """
        return _kept(ledger, kept) or cls.of_lines(ledger)

    def keep(self, path: Path) -> None:
        """Keep it for the next start. It is a help and no result: where it cannot be written, nothing is lost.

        Raises:
            OSError: it cannot be written.
        """
        if self.is_kept or not self.is_clean:
            return
        arrays = {**self.columns, "names": np.frombuffer(self.packed, np.uint8), "state": np.array(self.state)}
        with atomic_write(path) as temporary, temporary.open("wb") as out:
            np.savez(out, allow_pickle=False, **arrays)
        self.is_kept = True


class Rows:
    """Rows of a file, one by one, on the way to columns."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._keys = array("Q")
        self._names: list[str] = []

    def add(self, record: Record, start: int) -> None:
        """Add a line of ours that begins at this byte; its name is as it is seen from the output folder."""
        index, sample = id_of(record)
        size, name = record["bytes"], file_name_of(record)
        assert isinstance(size, int), "a line of ours"
        shard = shard_of(record)
        in_shard = bool(shard)
        self._numbers.extend(
            (index, sample, max(min(size, 2**62), 0), start, IN_SHARD if in_shard else folder_of(name))
        )
        self._keys.append(int(row_key_of(record), 16))
        self._names.append(f"{name}\t{shard}" if in_shard else name)

    def columns(self) -> Columns:
        table = np.frombuffer(self._numbers, np.int64).reshape(-1, 5)
        names = ("index", "sample", "size", "start", "folder")
        found = {name: table[:, n].astype(KINDS[name]) for n, name in enumerate(names)}
        return found | {"key": np.frombuffer(self._keys, np.uint64).copy()}

    def packed(self) -> bytes:
        return pack(self._names)


def pack(names: Iterable[str]) -> bytes:
    """Return names as they are kept."""
    return zlib.compress("".join(f"{name}\n" for name in names).encode(), 1)


def folder_of(name: str) -> int:
    """Return the number of the folder of images that a name is in."""
    folder, slash, _ = name.partition("/")
    return int(folder) if slash else AT_TOP


def kept_at(folder: Path, ledger: LedgerFile) -> Path:
    """Return where the columns of a ledger are kept.

    Args:
        folder: that of the closed segments.
        ledger: the file.
    """
    return folder / f"{ledger.inside.rstrip('/') or ledger.path.stem}{INDEX}"


def state_of(ledger: LedgerFile) -> tuple[int, int, int]:
    """What tells whether a file is as it was: of a segment its size, as nobody adds to one; and its time of any other."""
    try:
        info = ledger.path.stat()
    except FileNotFoundError:
        return FORMAT, 0, 0
    return FORMAT, info.st_size, 0 if ledger.path.parent.name == FOLDER_OF_SEGMENTS else info.st_mtime_ns


def _unpacked(packed: bytes, count: int) -> bytes:
    """The names; whoever wrote them, they take no more memory than so many can."""
    return zlib.decompressobj().decompress(packed, count * MOST_NAME + 1)


def _kept(ledger: LedgerFile, path: Path) -> FileIndex | None:
    """What is kept of a file as it is; anyone may have written it."""
    if not is_regular(path):
        return None
    try:
        state = state_of(ledger)
        with open_regular(path) as data, np.load(data, allow_pickle=False) as kept:
            if tuple(kept["state"].tolist()) != state:
                return None
            columns = {name: kept[name] for name in KINDS}
            packed = kept["names"].tobytes()
        if not _are_right(columns, packed, state[1]):
            return None
        return FileIndex(ledger, columns, packed, state=state, is_kept=True)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None


def _are_right(columns: Columns, packed: bytes, size: int) -> bool:
    """Whether these could be columns of ours: values within their bounds, and names that stay in the output folder."""
    count = len(columns["index"])
    if any(column.dtype != np.dtype(KINDS[name]) or column.shape != (count,) for name, column in columns.items()):
        return False
    names = _unpacked(packed, count)
    most = {"index": 2**63, "sample": MOST_SAMPLE, "size": 2**63, "start": size}
    in_bounds = all(_within(columns[name], top) for name, top in most.items())
    return in_bounds and names.count(b"\n") == count and _NAMES.fullmatch(names) is not None


def _within(column: npt.NDArray[Any], top: int) -> bool:
    return not len(column) or bool(column.min() >= 0 and int(column.max()) < top)


def read_all(ledgers: Sequence[LedgerFile], kept: Path) -> Iterator[FileIndex]:
    """Yield the columns of each of these files.

    Raises:
        UserError: one cannot be read.
    """
    for ledger in ledgers:
        yield FileIndex.read(ledger, kept_at(kept, ledger))
