"""The files of a working folder and the objects that they stand for (output/far.py): what is done to one is done to the other.

A file that is kept (a ledger, a note, scores) is whole here and is put when it has changed. Any other is a stub, which is read from
the store; when it gets another name, a second one or none, so does its object, at once and without its bytes coming here.
"""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from dglaunch.output.lines import FOLDER, IMAGE_SUFFIXES
from dglaunch.output.places import REPLACED, SCORES
from dglaunch.storage.errors import NoObject
from dglaunch.storage.store import Found, Store, Version
from dglaunch.storage.working import WorkingPath, is_stub, write_stub

OWN = ".dglaunch"
ASIDE = f"{OWN}-aside/"
MOST_FILE = 1 << 40
SHARD_SUFFIXES = (".tar", ".parquet")
"""Of large objects, which are told from others by what the store calls them."""
KEPT = re.compile(
    r"(metadata|failures|run)(-node\d+of\d+)?(-rank\d+of\d+)?\.jsonl?|rewritten\.jsonl|gallery\.html", re.ASCII
)
"""Files of the folder, and of its folders of images, that are whole here, beside those whose names begin as OWN does."""
IMAGE_FOLDER = re.compile(FOLDER, re.ASCII)


class State(NamedTuple):
    """What tells whether a file of the working folder is another one than before."""

    modified: int
    size: int
    number: int

    @classmethod
    def of(cls, path: Path) -> "State":
        info = path.stat()
        return cls(info.st_mtime_ns, info.st_size, info.st_ino)


def is_kept(name: str) -> bool:
    """Return whether a file is whole in the working folder, and no stub."""
    folder, _, last = name.rpartition("/")
    if name.startswith(OWN):
        return not name.startswith(ASIDE)
    if folder in (REPLACED, SCORES):
        return not last.endswith(IMAGE_SUFFIXES)
    return (not folder or IMAGE_FOLDER.fullmatch(folder) is not None) and KEPT.fullmatch(last) is not None


class FarFiles:
    """What this process knows of the files of its working folder, and does to them (storage/working.py: Behind).

    Args:
        folder: the working folder.
        store: what is under the address.
        may_put: whether a file of this name is this process's to put.
        before_put: called before anything is changed there: raises if it may not be.
    """

    def __init__(
        self, folder: WorkingPath, store: Store, may_put: Callable[[str], bool], before_put: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._store = store
        self._may_put = may_put
        self._before_put = before_put
        self.states: dict[str, State] = {}
        """Of the files that are in the store as they are here."""
        self.versions: dict[str, Version] = {}
        """Of the same, and of large objects: what the store calls them."""
        self._copies: dict[str, str] = {}
        """Temporary files that stand for one more object of the same content: of which."""

    # -- from there to here -------------------------------------------------------------------------------------------

    def stub(self, name: str, size: int, modified: datetime, is_new: bool = False) -> None:
        """See that there is a stub of an object.

        Args:
            is_new: it has just been put: a whole file of its name is an earlier one.
        """
        path = self._folder / name
        if path.exists() and path.stat().st_size == size and (is_stub(path) or not is_new):
            return
        write_stub(path, size, modified)

    def fetch(self, found: Found) -> None:
        """Make a file of an object.

        Raises:
            OSError: it cannot be read, or written here.
        """
        path = self._folder / found.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(path, "wb") as out:
            out.writelines(self._store.pieces(found, MOST_FILE))
        os.utime(path, (found.modified.timestamp(), found.modified.timestamp()))
        self.states[found.name] = State.of(path)
        self.versions[found.name] = found.version

    def forget_all_but(self, names: Iterable[str], inside: str = "") -> None:
        """Remove files whose objects are not there any more.

        Args:
            names: of those that are.
            inside: only files whose names begin so.
        """
        for name in [name for name in self.states.keys() - set(names) if name.startswith(inside)]:
            (self._folder / name).unlink(missing_ok=True)
            del self.states[name]

    def opened(self, name: str) -> io.BufferedReader:
        """Return the bytes of an object, in a file without a name.

        Raises:
            OSError: it cannot be read.
        """
        descriptor, place = tempfile.mkstemp(dir=os.path.dirname(os.fspath(self._folder)))
        os.unlink(place)
        try:
            with os.fdopen(os.dup(descriptor), "wb") as out:
                out.writelines(self._store.pieces(self._store.look_at(name), MOST_FILE))
            os.lseek(descriptor, 0, os.SEEK_SET)
        except BaseException:
            os.close(descriptor)
            raise
        return os.fdopen(descriptor, "rb")

    def bring(self, name: str) -> None:
        """Make of a stub the file that it stands for.

        Raises:
            OSError: it cannot be read.
        """
        self.fetch(self._store.look_at(name))

    # -- from here to there -------------------------------------------------------------------------------------------

    def put(self, name: str, is_own: bool = False) -> None:
        """Put a file as it is, if this process puts such files.

        Args:
            is_own: nobody else writes it.

        Raises:
            OSError: it cannot be put.
        """
        if is_own or self._may_put(name):
            self._before_put()
            state = State.of(self._folder / name)
            self.versions[name] = self._store.put_file(name, self._folder / name)
            self.states[name] = state

    def take(self, name: str, source: Path) -> bool:
        """Give a whole file this name: an object first, or one more of the object that it stands for.

        Raises:
            OSError: it cannot be put.
        """
        origin = self._copies.pop(os.fspath(source), None)
        if not self._may_put(name):
            return False
        self._before_put()
        target = self._folder / name
        if origin is not None:
            self._store.copy(origin, name)
            os.replace(source, target)
            return True
        self.versions[name] = self._store.put_file(name, source)
        if is_kept(name):
            os.replace(source, target)
            self.states[name] = State.of(target)
        else:
            if not name.endswith(SHARD_SUFFIXES):  # of millions of images nobody asks
                del self.versions[name]
            write_stub(target, source.stat().st_size, datetime.now(UTC))
            os.unlink(source)
        return True

    def link(self, name: str, temporary: Path) -> None:
        """Let a temporary file stand for an object until it is given a name.

        Raises:
            OSError: it cannot be written.
        """
        os.link(self._folder / name, temporary)
        self._copies[os.fspath(temporary)] = name

    def move(self, name: str, new: str) -> None:
        """Give the object of a stub another name. One that is not there any more is no error.

        Raises:
            OSError: it cannot be done.
        """
        if self._may_put(new):
            self._before_put()
            with suppress(NoObject):
                self._store.move(name, new)

    def is_put_note(self, name: str) -> bool:
        """Return whether a file is one of those kept ones that stand for themselves, and is in the store. What a ledger gives up
        stands in another by then, which may have to be put first: it goes when all is put (`FarFolder.sync`)."""
        return name in self.states and (name.startswith(f"{SCORES}/") or ("/" not in name and name.startswith(OWN)))

    def remove(self, names: Iterable[str]) -> None:
        """Remove the objects of stubs, or of notes.

        Raises:
            OSError: it cannot be done.
        """
        gone = [name for name in names if self._may_put(name)]
        if gone:
            self._before_put()
            self._store.delete(gone)
        for name in gone:
            self.states.pop(name, None)
