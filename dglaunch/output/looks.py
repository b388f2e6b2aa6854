"""The files of an output folder and of its folders of images, as a start finds them; and what it keeps of that for the next.

    .dglaunch-ledger/folders.index     of a job of more than a million images

To ask the system for each of ten million files takes a minute on a disk of one's own, and far longer across a network. So a start
keeps a look at every folder of images (0001) whose files were all there in full, and in which nothing had been changed for some
minutes: what the system says of the folder itself, and a hash of what the ledgers say of its images. While both stay the same,
the next start reads which names are in the folder, and asks for none of its files. One that is removed, added, renamed or
replaced changes what the system says of the folder. One that is cut or overwritten in place does not: that is for `dglaunch
verify` to find, which reads every byte.

A kept look can be lost or deleted at any time. One that is damaged, of another format, or does not fit is as none.
"""

import hashlib
import os
import struct
import time
from array import array
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dglaunch.atomic import atomic_write
from dglaunch.files import is_regular, read_bytes
from dglaunch.output import ownership
from dglaunch.output.far import far_of
from dglaunch.output.file_index import AT_TOP, Ints
from dglaunch.output.forks import in_forks
from dglaunch.output.in_window import in_window
from dglaunch.output.segments import FOLDER, INDEX

LARGE_ROWS = 1_000_000
"""A job of more images has looks kept. Of fewer each file is asked for at each start, which takes seconds."""
SETTLED_S = 600.0
"""For so long nothing must have been changed in a folder before it was looked at: then its files have reached the disk, and the
next change is seen, however coarse the file system's clock is."""
LOOKING = 8
"""Folders that are looked into at a time."""
MANY = 50
"""Folders without a look from which several processes look into them."""
KEPT = f"folders{INDEX}"
MOST_BYTES = 1 << 28
"""Of that file; 72 a folder."""
_HEAD = b"dglaunch looks 1\n"
_LOOK = struct.Struct("<q5Q16sd")
_WORD = (1 << 64) - 1
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
State = tuple[int, ...]
"""What the system says of a folder itself: its number on the disk, when what is in it was changed, ..."""


class Place(NamedTuple):
    """A folder whose images are compared: that of the results, or a folder of images in it."""

    number: int
    inside: str | None
    """What the names of its files begin with, as they are seen from the output folder; None: it is not there."""


class Files(NamedTuple):
    """The files of a folder."""

    names: list[str]
    """As they are seen from the output folder."""
    sizes: Ints
    """Bytes of each, -1 of what is no regular file, such as a link; one more stands at the end, for what is not there."""
    times: Floats
    """When each was written; likewise."""
    state: State = ()
    is_settled: bool = False
    """Whether nothing had been changed in the folder for SETTLED_S."""

    def places(self, names: Sequence[str]) -> Ints:
        """Return where sizes and times of the files of these names stand."""
        at = dict(zip(self.names, range(len(self.names))))
        return np.fromiter(map(at.get, names, repeat(-1)), np.int64, len(names))


class Seen(NamedTuple):
    """What was found of the images of a folder."""

    good: Bools | bool
    """Whether each is there in full."""
    times: Floats | float
    """When each was written; of a folder whose look holds, when the last of them was."""
    unlisted: Collection[str]
    """Names of what else is there."""
    holds: bool = False
    """It is what an earlier start found."""


class Look(NamedTuple):
    """What is kept of a folder in which all images are there in full."""

    state: State
    digest: bytes
    """A hash of its images' names and sizes."""
    latest: float
    """When the last of them was written."""


class Looks:
    """Looks compare what is in an output folder with what its ledgers say, once.

    Args:
        folder: the output folder.
        num_rows: how many images the ledgers tell of.
    """

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._folder = folder
        self._is_large = num_rows > LARGE_ROWS and far_of(folder) is None
        self._kept = _read(folder / FOLDER / KEPT) if self._is_large else {}
        self._held: dict[int, Look] = {}
        self._fresh: dict[int, Look] = {}

    def into(self, places: Sequence[Place]) -> Iterator[Files | list[str]]:
        """Yield the files of each of these; of one whose look may hold their names alone. Some are read ahead: a file system
        across a network answers many questions as fast as one. Many that no look is kept of are too much for one process: what
        the system says of ten million files takes it over a minute to take in."""
        processes = min(os.cpu_count() or 1, LOOKING)
        if self._is_large and sum(place.number not in self._kept for place in places) >= MANY and processes > 1:
            yield from in_forks(self._into, places, processes)
            return
        with ThreadPoolExecutor(LOOKING) as pool:
            yield from in_window(pool, self._into, places, LOOKING)

    def _into(self, place: Place) -> Files | list[str]:
        kept = self._kept.get(place.number)
        if kept is not None and place.inside is not None:
            with suppress(OSError), _opened(self._folder, place.inside) as opened:
                if _state(opened) == kept.state:
                    return [place.inside + name for name in os.listdir(opened)]
        return files_in(self._folder, place.inside)

    def compare(self, place: Place, found: Files | list[str], names: Sequence[str], sizes: Ints) -> Seen:
        """Compare what there is in a folder with its images.

        Args:
            names: of the images.
            sizes: their bytes, as the ledgers have them.
        """
        is_kept = self._is_large and place.number != AT_TOP and len(names) > 0
        digest = _digest(names, sizes) if is_kept else b""
        if isinstance(found, list):
            look, others = self._kept[place.number], set(found).difference(names)
            if look.digest == digest and len(others) == len(found) - len(names):
                self._held[place.number] = look
                return Seen(True, look.latest, others, holds=True)
            found = files_in(self._folder, place.inside)
        at = found.places(names)
        lengths, times = found.sizes[at], found.times[at]
        good: Bools = (lengths > 0) & (lengths == sizes)
        if is_kept and found.is_settled and bool(good.all()):
            self._fresh[place.number] = Look(found.state, digest, float(times.max()))
        return Seen(good, times, set(found.names).difference(names))

    def times(self, place: Place, names: Sequence[str]) -> Floats:
        """Return when each of some images of a folder was written; 0.0 of one that is not there."""
        found = files_in(self._folder, place.inside)
        return found.times[found.places(names)]

    def keep(self) -> None:
        """Keep what was looked at for the next start. It is a help and no result.

        Raises:
            OSError: it cannot be written.
        """
        if not self._fresh:
            return
        looks = sorted((self._held | self._fresh).items())
        lines = (_LOOK.pack(number, *look.state, look.digest, look.latest) for number, look in looks)
        ownership.make_folder(self._folder / FOLDER)
        with atomic_write(self._folder / FOLDER / KEPT) as temporary:
            temporary.write_bytes(b"".join([_HEAD, *lines]))


def files_in(folder: Path, inside: str | None) -> Files:
    """Return the files of a folder; none of one that is not there.

    Args:
        folder: the output folder.
        inside: the folder in it, as a `Place` has it.
    """
    names: list[str] = []
    sizes, times = array("q"), array("d")
    state: State = ()
    began = time.time_ns()
    with suppress(FileNotFoundError, NotADirectoryError), _opened(folder, inside) as opened:
        state = _state(opened)
        with os.scandir(opened) as entries:
            for entry in entries:
                info = _info(entry)
                names.append(inside + entry.name if inside else entry.name)
                sizes.append(-1 if info is None else info.st_size)
                times.append(0.0 if info is None else info.st_mtime)
    sizes.append(-1)
    times.append(0.0)
    is_settled = bool(state) and began - max(state[1:3]) >= SETTLED_S * 1e9
    return Files(names, np.frombuffer(sizes, np.int64), np.frombuffer(times, np.float64), state, is_settled)


def _info(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """What the system says of a regular file that is still there."""
    try:
        return entry.stat(follow_symlinks=False) if entry.is_file(follow_symlinks=False) else None
    except FileNotFoundError:
        return None


@contextmanager
def _opened(folder: Path, inside: str | None) -> Iterator[int]:
    """Open a folder: the system finds what is in it without the way from the root, and says what it says of this very one. A folder
    of images is no link.

    Raises:
        OSError: it cannot be opened.
    """
    if inside is None:
        raise FileNotFoundError(folder)
    opened = os.open(folder / inside, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if inside else 0))
    try:
        yield opened
    finally:
        os.close(opened)


def _state(opened: int) -> State:
    """What tells whether anything was changed in an open folder."""
    info = os.fstat(opened)
    return tuple(n & _WORD for n in (info.st_ino, info.st_mtime_ns, info.st_ctime_ns, info.st_nlink, info.st_size))


def _digest(names: Sequence[str], sizes: Ints) -> bytes:
    """A hash of what the ledgers say of images."""
    said = hashlib.blake2b("\n".join(names).encode(), digest_size=16)
    said.update(sizes.astype("<i8").tobytes())
    return said.digest()


def _read(path: Path) -> dict[int, Look]:
    """What an earlier start has kept; anyone may have written it."""
    try:
        data = read_bytes(path, MOST_BYTES) if is_regular(path) else b""
    except OSError:
        return {}
    lines = data.removeprefix(_HEAD)
    if not data.startswith(_HEAD) or len(lines) % _LOOK.size:
        return {}
    return {number: Look(tuple(state), digest, latest) for number, *state, digest, latest in _LOOK.iter_unpack(lines)}
