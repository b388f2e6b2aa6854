"""Results in an object store: what a process puts there, and what it has of them in its working folder (storage/working.py).

    far = far_of(folder)                  # None for a folder of this machine
    far.pull()                            # the working folder becomes as the store is
    far.put_image("000000.png", data, then)
    far.note_line("metadata.jsonl", line)
    far.flush()                           # all of it is there
    far.sync()                            # and so is what else has changed in the working folder

An image is put as an object, in the background. A line goes to the ledger of the working folder once its image is there, and to
the store in an object of lines at most LINES_S later: nothing is ever appended there. Whole ledgers are put when a run begins
and ends, and when there are many objects of lines, which go then.

In the working folder the ledgers and notes are whole; of an image there is a file of its size with nothing in it, so that what
looks at names and sizes works, and what reads pixels asks `read`.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from dglaunch import strict_json
from dglaunch.addresses import Address, path_or_address
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.output import far_shards, segments, shards
from dglaunch.output.far_lines import LEDGER, LINES, MARK, Lines, file_of, number_of, suffix_of
from dglaunch.output.far_shards import FarShards
from dglaunch.output.lines import FOLDER, IMAGE_SUFFIXES, file_name_of
from dglaunch.storage import lease, retrying
from dglaunch.storage.errors import REFUSED, StorageError
from dglaunch.storage.lease import Lease
from dglaunch.storage.store import Found, Store, Version
from dglaunch.storage.uploads import AT_A_TIME, Uploads
from dglaunch.storage.working import WorkingPath, address_of, working_folder

Item = TypeVar("Item")
Value = TypeVar("Value")
OWN = ".dglaunch"
LEASES = f"{OWN}/leases/"
PROBE = f"{OWN}/probe"
ASIDE = f"{OWN}-aside/"
OPENING_S = 30.0
"""How long a store is asked before a run has begun."""
MOST_LINE_OBJECTS = 64
"""Before the whole ledger is put in their place."""
MOST_FILE, MOST_IMAGE = 1 << 40, 1 << 30
MOST_LOOKED_AT = 20_000
"""Images without a line that are fetched to see whose they are: those of twenty writers that were killed at the worst moment."""
KEPT = re.compile(
    r"(metadata|failures|run)(-node\d+of\d+)?(-rank\d+of\d+)?\.jsonl?|rewritten\.jsonl|gallery\.html", re.ASCII
)
"""Files that are whole in the working folder, beside those whose names begin as OWN does."""
_IMAGE_FOLDER = re.compile(FOLDER, re.ASCII)
BEGINS = b'{"file_name": "'
_NAME_IN_LINE = re.compile(re.escape(BEGINS) + rb'([^"\\]+)"')

_folders: dict[str, "FarFolder"] = {}


def far_of(path: Path) -> "FarFolder | None":
    """Return what lies behind a working folder; None for a folder of this machine."""
    address = address_of(path)
    if address is None:
        return None
    key = os.fspath(path)
    if key not in _folders:
        assert isinstance(path, WorkingPath)
        _folders[key] = FarFolder(path, Store(address))
    return _folders[key]


def opened_to_read(folder: Path, with_open_shards: bool = False, cache: Path = Path("~/.cache/dglaunch")) -> Path:
    """Return a folder of results to look at: of an address a working folder, as the store is now.

    Args:
        with_open_shards: shards that are being filled are fetched, too.

    Raises:
        UserError: the store cannot be read.
    """
    address = path_or_address(folder)
    if not isinstance(address, Address):
        return folder
    if not address.is_store:
        raise UserError(f"{address} is no place for results; name a folder, or a prefix of an object store.")
    try:
        working = working_folder(address, cache)
        far = far_of(working)
        assert far is not None, "it was made just now"
        far.pull(lambda suffix: with_open_shards)
    except OSError as error:
        raise UserError(f"{address} cannot be read: {error.strerror or error}.") from None
    return working


class _State(NamedTuple):
    """What tells whether a file of the working folder is another one than before."""

    modified: int
    size: int
    number: int

    @classmethod
    def of(cls, path: Path) -> "_State":
        info = path.stat()
        return cls(info.st_mtime_ns, info.st_size, info.st_ino)


class FarFolder:
    """The results under an address, as one process sees and writes them."""

    def __init__(self, folder: WorkingPath, store: Store) -> None:
        self.folder = folder
        self.store = store
        store.retries.patience = OPENING_S
        self._uploads = Uploads(store)
        self._states: dict[str, _State] = {}
        """Of the files of the working folder that are in the store as they are here."""
        self._versions: dict[str, Version] = {}
        """Of the same: what the store called them when they were fetched."""
        self._lines = Lines(store)
        self.shards = FarShards(folder, store, self._uploads, self._check)
        self._leases: list[Lease] = []
        self._part = ""

    # -- from there to here -------------------------------------------------------------------------------------------

    def pull(self, takes_over: Callable[[str], bool] = lambda suffix: False) -> None:
        """Make the working folder as the store is.

        Args:
            takes_over: of which parts of the job shards that were being filled are fetched.

        Raises:
            StorageError: the store cannot be read.
            OSError: the working folder cannot be written.
        """
        self.shards.forget_believed()
        listed = {found.name: found for found in self.store.list() if _may_be_here(found.name)}
        lines = [name for name in listed if name.startswith(LINES)]
        files = {name: found for name, found in listed.items() if not name.startswith(f"{OWN}/")}
        kept = [found for name, found in files.items() if _is_kept(name)]
        for name in self._states.keys() - files.keys():
            (self.folder / name).unlink(missing_ok=True)
            del self._states[name]
        for name, found in files.items():
            if not _is_kept(name):
                self._stub(name, found.size, found.modified)
        _in_threads(self._fetch, [found for found in kept if self._versions.get(found.name) != found.version])
        self.shards.pull(listed.values(), takes_over)
        self._take_lines(lines)
        self._look_at_unnamed(files)

    def pull_ledgers(self, suffixes: Callable[[str], bool]) -> None:
        """Fetch what other parts have written by now, when they write no more.

        Args:
            suffixes: tells of which parts.
        """
        lines = [
            found.name for found in self.store.list(LINES.rstrip("/")) if suffix_of(file_of(found.name)) is not None
        ]
        lines = [name for name in lines if suffixes(suffix_of(file_of(name)) or "")]
        for file in {file_of(name) for name in lines}:
            with suppress(FileNotFoundError):
                self._fetch(self.store.look_at(file))
        closed = [
            found
            for found in self.store.list(segments.FOLDER)
            if suffixes(segments.suffix_of(Path(found.name))) and self._versions.get(found.name) != found.version
        ]
        _in_threads(self._fetch, closed)
        self._take_lines(lines)
        for place in (shards.SHARDS, far_shards.OPEN.rstrip("/")):
            self.shards.believe(self.store.list(place), suffixes)
        coming = {file_of(name) for name in lines if file_of(name).startswith("metadata")}
        for file in coming | {found.name for found in closed if found.name.endswith(".jsonl")}:
            for record in _records(self.folder / file):
                if not shards.shard_of(record):
                    self._stub(file_name_of(record), record["bytes"], datetime.now(UTC))

    def _stub(self, name: str, size: object, modified: datetime) -> None:
        """A file that has an image's name, size and time, and nothing in it."""
        if not isinstance(size, int) or not _may_be_here(name):
            return
        path = self.folder / name
        if path.exists() and path.stat().st_size == size:
            return
        far_shards.write_stub(path, size, modified)

    def _fetch(self, found: Found) -> None:
        path = self.folder / found.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as out:
            out.writelines(self.store.pieces(found, MOST_FILE))
        os.utime(path, (found.modified.timestamp(), found.modified.timestamp()))
        self._states[found.name] = _State.of(path)
        self._versions[found.name] = found.version

    def _take_lines(self, names: Sequence[str]) -> None:
        """Add the lines of objects to the ledgers that they are of, unless they stand in a ledger already."""
        data = dict(zip(names, _in_threads(partial(self.store.get, most=MOST_FILE), names)))
        coming: dict[str, dict[bytes, None]] = defaultdict(dict)
        for name in sorted(names):
            file = file_of(name)
            coming[file] |= dict.fromkeys(line for line in data[name].splitlines(keepends=True) if line.endswith(b"\n"))
            self._lines.know(file, name, number_of(name))
        for file, lines in coming.items():
            for path in self._ledgers_of_kind(file) if lines else ():
                inside = _inside(path).encode()
                with open(path, "rb") as ledger:
                    for line in ledger:
                        lines.pop(line.replace(BEGINS, BEGINS + inside, 1) if inside else line, None)
            if lines:
                with open(self.folder / file, "ab") as out:
                    out.writelines(lines)

    def _ledgers_of_kind(self, file: str) -> Iterator[Path]:
        stem = "failures" if file.startswith("failures") else "metadata"
        for name in self._candidates():
            if name.endswith(".jsonl") and (name.startswith(OWN) or Path(name).name.startswith(stem)):
                yield self.folder / name

    def _look_at_unnamed(self, files: dict[str, Found]) -> None:
        """Fetch the images that no line names: whose they are stands in them."""
        images = {name for name in files if name.endswith(IMAGE_SUFFIXES) and not name.startswith(OWN)}
        for path in self._ledgers_of_kind("metadata"):
            inside = _inside(path)
            with open(path, "rb") as ledger:
                images.difference_update(
                    inside + found[1].decode("utf-8", "replace")
                    for line in ledger
                    if (found := _NAME_IN_LINE.match(line))
                )
        _in_threads(self._fetch, [files[name] for name in sorted(images)[:MOST_LOOKED_AT]])

    def read(self, name: str, shard: str) -> bytes:
        """Return the bytes of an image.

        Args:
            shard: the one that it is in; empty for a file of its own.

        Raises:
            OSError: it is not there, or cannot be read.
        """
        return self.shards.read(shard, name) if shard else self.store.get(name, MOST_IMAGE)

    # -- who writes ---------------------------------------------------------------------------------------------------

    def lock(self, suffix: str, others: Sequence[str], in_use: Callable[[str], UserError]) -> None:
        """See that this part of the address can be written, and hold it from now on.

        Args:
            suffix: of the part's files.
            others: patterns of the parts that nobody else may write.
            in_use: makes the error that says who writes.

        Raises:
            UserError: it cannot be written, or somebody else writes there.
        """
        now = self.store.check_writable(f"{PROBE}{suffix}", os.urandom(8))
        held = Lease(self.store, _lease_name(suffix), in_use)
        held.take(now)
        self._leases.append(held)
        for name in self._lease_names(others):
            if name != _lease_name(suffix) and (found := self.store.read(name, lease.MOST)) is not None:
                lease.wait_for_death(self.store, name, found, now, in_use)
                self.store.delete([name])
        self._part = suffix
        self._lines.begin(suffix)
        self.store.retries.patience = retrying.PATIENCE_S

    def is_held(self, pattern: str) -> bool:
        """Return whether somebody writes to such parts."""
        now = datetime.now(UTC)
        return any(lease.is_held(self.store, name, now) for name in self._lease_names([pattern]))

    def _lease_names(self, patterns: Sequence[str]) -> list[str]:
        names = [found.name for found in self.store.list(LEASES.rstrip("/"))]
        return [name for name in names if any(fnmatchcase(name, _lease_name(pattern)) for pattern in patterns)]

    # -- from here to there -------------------------------------------------------------------------------------------

    def put_image(self, name: str, data: bytes, then: Callable[[], None]) -> None:
        """Put an image in the background; `then` is called once it is there.

        Raises:
            StorageError: what was to be put before could not be, or somebody else has taken over.
        """
        self._check()

        def there() -> None:
            self._stub(name, len(data), datetime.now(UTC))
            then()

        self._uploads.add(name, data, there)

    def _check(self) -> None:
        """Wait for lines that are late; raise what befell the thread that puts them, or that this process may not write any more."""
        if any(held.is_lost for held in self._leases):
            raise StorageError("another process has taken over, as this one did not renew its lease in time", REFUSED)
        self._lines.wait_for_room()

    def note_line(self, file: str, record: Record) -> None:
        """Put a line that was added to a ledger of the working folder, soon."""
        self._lines.add(file, (strict_json.dumps(record) + "\n").encode())

    def flush_lines(self) -> None:
        """Wait until all lines are there.

        Raises:
            StorageError: some could not be put.
        """
        self._lines.flush()

    def flush(self) -> None:
        """Wait until all images and lines are there.

        Raises:
            StorageError: some could not be put.
        """
        self._uploads.flush()
        self._lines.flush()

    def sync(self, has_ended: bool = False) -> None:
        """Put what has changed in the working folder.

        Args:
            has_ended: no line is added any more, or none yet: the ledgers are put whole, too.

        Raises:
            StorageError: it cannot be put.
            OSError: the working folder cannot be read.
        """
        changed = {name: state for name in self._candidates() if (state := self._changed(name)) is not None}
        closed = any(name.startswith(OWN) and name.endswith(".jsonl") for name in changed)
        whole = has_ended or closed or self._lines.count > MOST_LINE_OBJECTS
        replaced = self._lines.known() if whole else []
        for name, state in changed.items():
            if whole or LEDGER.fullmatch(name) is None or name.startswith("run-") or name == "run.json":
                self.store.put_file(name, self.folder / name)
                self._states[name] = state
        if has_ended:
            gone = [name for name in self._states if self._is_mine(name) and self._state_of(name) is None]
            self.store.delete(gone)
            for name in gone:
                del self._states[name]
            self._move_aside()
            self.shards.sync(lambda suffix: self._is_mine(f"metadata{suffix}.jsonl"))
        if whole:
            self._lines.forget([name for name in replaced if self._is_done_with(name)])

    def _is_done_with(self, name: str) -> bool:
        """Whether an object of lines may go, when the ledgers were put: the mark of a part stays as long as the part does."""
        file = file_of(name)
        is_joined = not os.path.lexists(self.folder / file)
        return self._is_mine(file) and (is_joined or not name.endswith(MARK))

    def _changed(self, name: str) -> _State | None:
        """The state of a file that is to be put."""
        state = self._state_of(name)
        return state if self._is_mine(name) and self._states.get(name) != state else None

    def _state_of(self, name: str) -> _State | None:
        """The state of a file; None if there is none, or a list of failures without any, which goes when the run ends."""
        try:
            state = _State.of(self.folder / name)
        except FileNotFoundError:
            return None
        return None if not state.size and name.startswith("failures") else state

    def _is_mine(self, name: str) -> bool:
        """Whether this part puts a file: of ledgers its own, and those that it joins."""
        found = LEDGER.fullmatch(Path(name).name)
        if found is None:
            return True
        if "-rank" in self._part:  # rank 0 takes these over, and says in run.json what is to be said
            return found[1] == self._part and not name.startswith("run")
        return found[1].startswith(self._part) or not found[1]

    def _candidates(self) -> Iterator[str]:
        """The files of the working folder that may have to be put."""
        with os.scandir(self.folder) as entries:
            for entry in list(entries):
                if entry.is_dir(follow_symlinks=False):
                    yield from self._candidates_in(entry.name)
                elif _is_kept(entry.name) and not entry.name.endswith((".lock", ".tmp")):
                    yield entry.name

    def _candidates_in(self, folder: str) -> Iterator[str]:
        if _IMAGE_FOLDER.fullmatch(folder):
            yield from [f"{folder}/metadata.jsonl"] if (self.folder / folder / "metadata.jsonl").is_file() else []
        elif folder.startswith(OWN) and f"{folder}/" != ASIDE and folder != shards.HIDDEN:
            here = os.fspath(self.folder)
            for place, _, names in os.walk(os.path.join(here, folder)):
                yield from (
                    os.path.relpath(os.path.join(place, name), here) for name in names if not name.endswith(".tmp")
                )

    def _move_aside(self) -> None:
        """What was set aside here is set aside there."""
        for path in Path(os.fspath(self.folder / ASIDE)).glob("*"):
            info, name = path.stat(), f"{ASIDE}{path.name}"
            if info.st_size and not info.st_blocks:
                with suppress(FileNotFoundError):
                    self.store.move(path.name, name)
            elif self._states.get(name) != _State.of(path):
                self.store.put_file(name, path)
                self._states[name] = _State.of(path)

    def close(self) -> None:
        """Give the leases back. Closing twice does nothing."""
        self._uploads.close()
        self._lines.close()
        for held in self._leases:
            held.close()
        self._leases.clear()


def _inside(ledger: Path) -> str:
    """What the names in the ledger of a folder of images begin with, seen from above."""
    return f"{ledger.parent.name}/" if _IMAGE_FOLDER.fullmatch(ledger.parent.name) else ""


def _lease_name(suffix: str) -> str:
    return f"{LEASES}owner{suffix}.json"


def _may_be_here(name: str) -> bool:
    """Whether an object can be a file of the working folder, or is one of lines: anyone may have put it there."""
    parts = name.split("/")
    if name.startswith(f"{OWN}/"):
        return LEDGER.fullmatch(file_of(name)) is not None or far_shards.shard_of_piece(name) != ""
    return len(parts) <= 3 and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)


def _is_kept(name: str) -> bool:
    last = name.rpartition("/")[2]
    return KEPT.fullmatch(last) is not None or (name.startswith(OWN) and not name.startswith(ASIDE))


def _records(path: Path) -> Iterator[Record]:
    with suppress(FileNotFoundError), open(path, "rb") as ledger:
        for line in ledger:
            with suppress(ValueError):
                record = strict_json.loads(line)
                if isinstance(record, dict) and "bytes" in record:
                    yield record


def _in_threads(function: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    with ThreadPoolExecutor(2 * AT_A_TIME) as pool:
        return list(pool.map(function, items))
