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

In the working folder the ledgers and notes are whole; of an image there is a stub, so that what looks at names and sizes works; what
becomes of a file becomes of its object (output/far_files.py).
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from dglaunch import strict_json
from dglaunch.addresses import Address, path_or_address
from dglaunch.data.task import Record
from dglaunch.errors import UserError
from dglaunch.output import far_shards, segments, shards
from dglaunch.output.far_files import ASIDE, IMAGE_FOLDER, MOST_FILE, OWN, SHARD_SUFFIXES, FarFiles, State, is_kept
from dglaunch.output.far_leases import Leases
from dglaunch.output.far_lines import LEDGER, LINES, MARK, Lines, file_of, number_of, suffix_of
from dglaunch.output.far_shards import FarShards
from dglaunch.output.lines import IMAGE_SUFFIXES, file_name_of
from dglaunch.output.places import LEDGER_OF_REPLACED, REPLACED, SCORES
from dglaunch.storage import retrying
from dglaunch.storage.errors import REFUSED, NoObject, StorageError
from dglaunch.storage.store import Found, Store
from dglaunch.storage.uploads import AT_A_TIME, Uploads
from dglaunch.storage.working import WorkingPath, address_of, is_stub, lies_behind, working_folder
from dglaunch.streams import say

Item = TypeVar("Item")
Value = TypeVar("Value")
RUNS = "run"
"""What the names of those files begin with in which the runs tell of themselves."""
REQUESTS = 16
"""Files of an object store that are asked for at a time."""
OPENING_S = 30.0
"""How long a store is asked before a run has begun."""
MOST_LINE_OBJECTS = 64
"""Before the whole ledger is put in their place."""
MOST_IMAGE = 1 << 30
MOST_LOOKED_AT = 20_000
"""Images without a line that are fetched to see whose they are: those of twenty writers that were killed at the worst moment."""
MOST_LEVELS = 4
"""Of the name of an object that has a file in the working folder: those of a view are geneval/00017/samples/00000.png."""
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
        lies_behind(path, _folders[key].files)
    return _folders[key]


def behind(path: Path) -> "FarFolder | None":
    """Return what lies behind the working folder that a file is in; None for any other file."""
    return far_of(WorkingPath(path.root_folder)) if isinstance(path, WorkingPath) else None


def rename(path: Path, target: Path) -> None:
    """Give a file of an output folder another name in it.

    Raises:
        OSError: it cannot be done.
    """
    if is_stub(path) and (far := behind(path)) is not None:
        far.files.move(name_there(path), name_there(target))
    os.rename(path, target)


def unlink(paths: Sequence[Path]) -> None:
    """Remove files of an output folder; a missing one is no error.

    Raises:
        OSError: it cannot be done.
    """
    if paths and (far := behind(paths[0])) is not None:
        gone = [name_there(path) for path in paths if is_stub(path) or far.files.is_put_note(name_there(path))]
        far.files.remove(gone)
    for path in paths:
        path.unlink(missing_ok=True)


def version_of(path: Path) -> str:
    """Return how the store tells an object of a view from what it may be replaced by; empty: that is not known."""
    far = behind(path)
    return str(far.files.versions.get(name_there(path), {}).get("e_tag") or "") if far is not None else ""


def name_there(path: Path) -> str:
    """Return the name of the object that a file of a working folder stands for, or would be."""
    assert isinstance(path, WorkingPath), "a file of a working folder"
    return path.name_there


def opened_to_read(
    folder: Path, with_open_shards: bool = False, only_runs: bool = False, cache: Path = Path("~/.cache/dglaunch")
) -> Path:
    """Return a folder of results to look at: of an address a working folder, as the store is now.

    Args:
        with_open_shards: shards that are being filled are fetched, too.
        only_runs: what the job was asked is all that is wanted.

    Raises:
        UserError: the store cannot be read.
    """
    working = opened_to_write(folder, cache)
    if (far := far_of(working)) is not None:
        with _told_unreadable(working):
            if not (only_runs and far.has_run()):
                far.pull(lambda suffix: with_open_shards)
    return working


def read_again(folder: Path, only_runs: bool = False) -> None:
    """See how the results that were opened are by now: of an address the working folder becomes as the store is.

    Args:
        only_runs: what the runs say of themselves is all that is wanted.

    Raises:
        UserError: the store cannot be read.
    """
    if (far := far_of(folder)) is not None:
        with _told_unreadable(folder):
            if only_runs:
                far.pull_runs()
            else:
                far.pull()


@contextmanager
def _told_unreadable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}.") from None


def opened_to_write(folder: Path, cache: Path = Path("~/.cache/dglaunch")) -> Path:
    """Return a folder for results: of an address a working folder, with nothing in it yet.

    Raises:
        UserError: it is no address for results, or the working folder cannot be made.
    """
    address = path_or_address(folder)
    if not isinstance(address, Address):
        return folder
    if not address.is_store:
        raise UserError(f"{address} is no place for results; name a folder, or a prefix of an object store.")
    try:
        return working_folder(address, cache)
    except OSError as error:
        raise UserError(f"{error.filename or cache} cannot be written: {error.strerror or error}.") from None


class FarFolder:
    """The results under an address, as one process sees and writes them."""

    def __init__(self, folder: WorkingPath, store: Store) -> None:
        self.folder = folder
        self.store = store
        store.retries.patience = OPENING_S
        store.retries.slow = self._say_slow
        self._uploads = Uploads(store)
        self.files = FarFiles(folder, store, self._may_put, self._check)
        self._lines = Lines(store)
        self.shards = FarShards(folder, store, self._uploads, self._check)
        self.leases = Leases(store)
        self._part = ""

    def _say_slow(self, error: StorageError) -> None:
        """Before a run has begun somebody may sit there and wait."""
        say(f"dglaunch: {self.folder}: {error}; asked again for up to {OPENING_S:.0f} s", error=True)

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
        listed = {found.name: found for found in self.store.list_folders() if _may_be_here(found.name)}
        lines = [name for name in listed if name.startswith(LINES)]
        files = {name: found for name, found in listed.items() if not name.startswith(f"{OWN}/")}
        self.files.forget_all_but(files)
        for name, found in files.items():
            if not is_kept(name):
                self.files.stub(name, found.size, found.modified)
                if name.endswith(SHARD_SUFFIXES):
                    self.files.versions[name] = found.version
        self._fetch_all(found for name, found in files.items() if is_kept(name))
        self.shards.pull(listed.values(), takes_over)
        self._take_lines(lines)
        self._look_at_unnamed(files)

    def has_run(self) -> bool:
        """Fetch run.json; return whether there is one: nodes without a rendezvous have others.

        Raises:
            StorageError: the store cannot be read.
        """
        try:
            self.files.bring("run.json")
        except NoObject:
            return False
        return True

    def pull_runs(self) -> None:
        """Make run.json, of independent nodes several, as it is in the store. Of all other objects none is listed, or few.

        Raises:
            StorageError: the store cannot be read.
        """
        listed = {
            found.name: found
            for found in takewhile(lambda found: found.name.startswith(RUNS), self.store.list(after=RUNS))
            if LEDGER.fullmatch(found.name)
        }
        self.files.forget_all_but(listed, inside=RUNS)
        with suppress(NoObject):  # a run that begins anew is removing it
            self._fetch_all(listed.values())

    def pull_folder(self, folder: str) -> None:
        """Make a folder of files that are kept as the store is.

        Raises:
            StorageError: it cannot be read.
        """
        listed = {found.name: found for found in self.store.list(folder)}
        self.files.forget_all_but(listed, inside=f"{folder}/")
        self._fetch_all(found for name, found in listed.items() if is_kept(name) and _may_be_here(name))

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
                self.files.bring(file)
        closed = [found for found in self.store.list(segments.FOLDER) if suffixes(segments.suffix_of(Path(found.name)))]
        closed = self._fetch_all(closed)
        self._take_lines(lines)
        for place in (shards.SHARDS, far_shards.OPEN.rstrip("/")):
            self.shards.believe(self.store.list(place), suffixes)
        coming = {file_of(name) for name in lines if file_of(name).startswith("metadata")}
        for file in coming | {found.name for found in closed if found.name.endswith(".jsonl")}:
            for record in _records(self.folder / file):
                if not shards.shard_of(record):
                    self._stub_of(record)

    def _stub_of(self, record: Record) -> None:
        """A stub of the image of a line, which anyone may have written."""
        name, size = file_name_of(record), record["bytes"]
        if isinstance(size, int) and _may_be_here(name):
            self.files.stub(name, size, datetime.now(UTC))

    def _fetch_all(self, some: Iterable[Found]) -> list[Found]:
        """Fetch those that are not here as they are, and return them."""
        changed = [found for found in some if self.files.versions.get(found.name) != found.version]
        _in_threads(self.files.fetch, changed)
        return changed

    def _take_lines(self, names: Sequence[str]) -> None:
        """Add the lines of objects to the ledgers that they are of, unless they stand in a ledger already."""
        data = dict(zip(names, _in_threads(partial(self.store.get, most=MOST_FILE), names)))
        coming: dict[str, dict[bytes, None]] = defaultdict(dict)
        for name in sorted(names):
            file = file_of(name)
            coming[file] |= dict.fromkeys(line for line in data[name].splitlines(keepends=True) if line.endswith(b"\n"))
            self._lines.know(file, name, number_of(name))
        for file, lines in coming.items():
            for path in self._ledgers_like(file) if lines else ():
                inside = _inside(path).encode()
                with open(path, "rb") as ledger:
                    for line in ledger:
                        lines.pop(line.replace(BEGINS, BEGINS + inside, 1) if inside else line, None)
            if lines:
                (self.folder / file).parent.mkdir(exist_ok=True)
                with open(self.folder / file, "ab") as out:
                    out.writelines(lines)

    def _ledgers_like(self, file: str) -> Iterator[Path]:
        """The ledgers that a line of this one may stand in by now."""
        if file == LEDGER_OF_REPLACED:
            yield from [self.folder / file] if (self.folder / file).exists() else []
            return
        stem = "failures" if file.startswith("failures") else "metadata"
        for name in self._candidates():
            is_aside = name.startswith((ASIDE, f"{REPLACED}/", f"{SCORES}/"))
            if name.endswith(".jsonl") and (name.startswith(OWN) or Path(name).name.startswith(stem)) and not is_aside:
                yield self.folder / name

    def _look_at_unnamed(self, files: dict[str, Found]) -> None:
        """Fetch the images that no line names: whose they are stands in them."""
        images = {name for name in files if name.endswith(IMAGE_SUFFIXES) and _is_image_place(name)}
        for path in self._ledgers_like("metadata.jsonl"):
            inside = _inside(path)
            with open(path, "rb") as ledger:
                images.difference_update(
                    inside + found[1].decode("utf-8", "replace")
                    for line in ledger
                    if (found := _NAME_IN_LINE.match(line))
                )
        _in_threads(self.files.fetch, [files[name] for name in sorted(images)[:MOST_LOOKED_AT]])

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
        self.leases.take(suffix, others, in_use)
        self._part = suffix
        self._lines.begin(suffix)
        self.store.retries.patience, self.store.retries.slow = retrying.PATIENCE_S, None

    def hold_all(self, in_use: Callable[[str], UserError]) -> None:
        """Hold all parts as a run does that is one world, and see how they are by now.

        Raises:
            UserError: somebody writes there, or it cannot be written.
            StorageError: the store cannot be read.
        """
        self.lock("", ["-*"], in_use)
        self.pull(lambda suffix: True)

    # -- from here to there -------------------------------------------------------------------------------------------

    def put_image(self, name: str, data: bytes, then: Callable[[], None]) -> None:
        """Put an image in the background; `then` is called once it is there.

        Raises:
            StorageError: what was to be put before could not be, or somebody else has taken over.
        """
        self._check()

        def there() -> None:
            self.files.stub(name, len(data), datetime.now(UTC), is_new=True)
            then()

        self._uploads.add(name, data, there)

    def make_sure(self) -> None:
        """See that nobody has taken over: what this process does within a minute nobody else does.

        Raises:
            StorageError: somebody has, or the store cannot be asked.
        """
        self.leases.renew()
        self._check()

    def _check(self) -> None:
        """Wait for lines that are late; raise what befell the thread that puts them, or that this process may not write any more."""
        if self.leases.is_lost:
            raise StorageError("another process has taken over, as this one did not renew its lease in time", REFUSED)
        self._lines.wait_for_room()

    def note_line(self, file: str, record: Record) -> None:
        """Put a line that was added to a ledger of the working folder, soon."""
        self._lines.add(file, (strict_json.dumps(record) + "\n").encode())

    def put_line(self, file: str, record: Record) -> None:
        """Put a line that was added to a file of the working folder; it is there when this returns.

        Raises:
            StorageError: it cannot be put.
        """
        self._check()
        self.note_line(file, record)
        self._lines.flush()

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
            if whole or not _has_lines(name):
                self.store.put_file(name, self.folder / name)
                self.files.states[name] = state
        if has_ended:
            self._delete_gone()
            self.shards.sync(lambda suffix: self._is_mine(f"metadata{suffix}.jsonl"))
        if whole:
            self._lines.forget([name for name in replaced if self._is_done_with(name)])

    def _delete_gone(self) -> None:
        """Ledgers and what belongs to them that went from the working folder, once what takes their place is there."""
        states = self.files.states
        gone = [name for name in list(states) if self._is_mine(name) and self._state_of(name) is None]
        self.store.delete(gone)
        for name in gone:
            del states[name]

    def _is_done_with(self, name: str) -> bool:
        """Whether an object of lines may go, when the ledgers were put: the mark of a part stays as long as the part does."""
        file = file_of(name)
        is_joined = not os.path.lexists(self.folder / file)
        return self._is_mine(file) and (is_joined or not name.endswith(MARK))

    def _changed(self, name: str) -> State | None:
        """The state of a file that is to be put."""
        state = self._state_of(name)
        return state if self._is_mine(name) and self.files.states.get(name) != state else None

    def _may_put(self, name: str) -> bool:
        """Whether this process writes there, and files of this name."""
        return bool(self.leases) and self._is_mine(name) and not name.startswith(f"{shards.HIDDEN}/")

    def _state_of(self, name: str) -> State | None:
        """The state of a file; None if there is none, or a list of failures without any, which goes when the run ends."""
        try:
            state = State.of(self.folder / name)
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
                elif is_kept(entry.name) and not entry.name.endswith((".lock", ".tmp")):
                    yield entry.name

    def _candidates_in(self, folder: str) -> Iterator[str]:
        if IMAGE_FOLDER.fullmatch(folder):
            yield from [f"{folder}/metadata.jsonl"] if (self.folder / folder / "metadata.jsonl").is_file() else []
        elif (folder.startswith(OWN) and folder != shards.HIDDEN) or folder in (REPLACED, SCORES):
            here = os.fspath(self.folder)
            for place, _, names in os.walk(os.path.join(here, folder)):
                paths = (Path(place, name) for name in names if not name.endswith((".tmp", ".lock")))
                yield from (os.path.relpath(path, here) for path in paths if not is_stub(path))

    def close(self) -> None:
        """Give the leases back. Closing twice does nothing."""
        self._uploads.close()
        self._lines.close()
        self.leases.close()


def _inside(ledger: Path) -> str:
    """What the names in the ledger of a folder of images begin with, seen from above."""
    return f"{ledger.parent.name}/" if IMAGE_FOLDER.fullmatch(ledger.parent.name) else ""


def _is_image_place(name: str) -> bool:
    """Whether an object is where images of a job are: not in a view, nor among what was replaced."""
    folder = name.rpartition("/")[0]
    return not name.startswith(OWN) and (not folder or IMAGE_FOLDER.fullmatch(folder) is not None)


def _has_lines(name: str) -> bool:
    """Whether what is added to a file goes to the store in objects of lines."""
    return name == LEDGER_OF_REPLACED or (LEDGER.fullmatch(name) is not None and not name.startswith("run"))


def _may_be_here(name: str) -> bool:
    """Whether an object can be a file of the working folder, or is one of lines: anyone may have put it there."""
    parts = name.split("/")
    if name.startswith(f"{OWN}/"):
        has_lines = LEDGER.fullmatch(file_of(name)) is not None or file_of(name) == LEDGER_OF_REPLACED
        return has_lines or far_shards.shard_of_piece(name) != ""
    is_right = all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)
    return len(parts) <= MOST_LEVELS and is_right


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
