"""Lines of ledgers on their way to an object store, which cannot append: a thread puts them as objects of lines.

.dglaunch/lines/metadata.jsonl/00000007-9f3c2a1b.jsonl      lines of metadata.jsonl that are in no whole ledger there yet
.dglaunch/lines/metadata-rank3of8.jsonl/00000000            of no lines: says that there may be a ledger of that part
"""

import os
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable

from dglaunch.output.places import LEDGER_OF_REPLACED
from dglaunch.storage.store import Store

LINES = ".dglaunch/lines/"
"""Of objects that are in no working folder."""
MARK = "/00000000"
"""How the name of an object of no lines ends, which says that there may be a ledger."""
LINES_S = 2.0
"""Longest time from an image's object to that of its line: with what is on its way (storage/uploads.py) all that a loss of the
machine costs."""
MOST_LINES = 500
"""In an object of lines."""
MOST_AHEAD = 1_000
"""Lines of images that are there which may not be there themselves yet: a store that is slow to take them holds up the images."""
LEDGER = re.compile(r"(?:metadata|failures|run)((?:-node\d+of\d+)?(?:-rank\d+of\d+)?)\.jsonl?", re.ASCII)
_LINES_OF = re.compile(re.escape(LINES) + rf"({LEDGER_OF_REPLACED}|[^/]+)/(\d{{8}})[^/]*", re.ASCII)


def file_of(name: str) -> str:
    """Return the ledger that an object of lines is of; empty for any other object."""
    found = _LINES_OF.fullmatch(name)
    return found[1] if found is not None else ""


def number_of(name: str) -> int:
    """Return the number of an object of lines among those of its ledger."""
    found = _LINES_OF.fullmatch(name)
    return int(found[2]) if found is not None else 0


def suffix_of(file: str) -> str | None:
    """Return the part of the job that a ledger is of ("-rank3of8"); None if it is no ledger's name."""
    found = LEDGER.fullmatch(file)
    return found[1] if found is not None else None


class Lines:
    """Lines on their way, by the ledger that they are of: a thread puts them when they are some seconds old."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._turn = threading.Lock()
        self._putting = threading.Lock()
        self._waiting: dict[str, list[bytes]] = defaultdict(list)
        self._since = 0.0
        self._num_ahead = 0
        """Lines that wait, or are being put."""
        self._objects: dict[str, set[str]] = defaultdict(set)
        self._number: dict[str, int] = defaultdict(int)
        self._token = os.urandom(4).hex()
        self._error: Exception | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def count(self) -> int:
        """Objects of lines that this process knows."""
        return sum(map(len, self._objects.values()))

    def know(self, file: str, name: str, number: int) -> None:
        """There is an object of lines."""
        self._objects[file].add(name)
        self._number[file] = max(self._number[file], number)

    def known(self) -> list[str]:
        with self._turn:
            return [name for names in self._objects.values() for name in names]

    def forget(self, names: Iterable[str]) -> None:
        """Remove objects of lines that stand in a whole ledger by now."""
        gone = set(names)
        self._store.delete(sorted(gone))
        with self._turn:
            for known in self._objects.values():
                known -= gone

    def begin(self, suffix: str) -> None:
        """Of a part: let others see that it has files."""
        for kind in ("metadata", "failures") if suffix else ():
            self._store.put(f"{LINES}{kind}{suffix}.jsonl{MARK}", b"")
            self._objects[f"{kind}{suffix}.jsonl"].add(f"{LINES}{kind}{suffix}.jsonl{MARK}")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="put lines", daemon=True)
            self._thread.start()

    def add(self, file: str, line: bytes) -> None:
        with self._turn:
            if not any(self._waiting.values()):
                self._since = time.monotonic()
            self._waiting[file].append(line)
            self._num_ahead += 1

    def check(self) -> None:
        """Raise what befell the thread."""
        if self._error is not None:
            raise self._error

    def wait_for_room(self) -> None:
        """Wait until not too many lines are on their way; raise what befell the thread that puts them."""
        self.check()
        while self._num_ahead > MOST_AHEAD and self._thread is not None and not self._end.wait(0.02):
            self.check()

    def _work(self) -> None:
        while not self._end.wait(LINES_S / 8):
            with self._turn:
                count = sum(map(len, self._waiting.values()))
                is_due = count >= MOST_LINES or (count and time.monotonic() - self._since > LINES_S / 2)
            if is_due:
                self._put_waiting()
            if self._error is not None:
                return

    def _put_waiting(self) -> None:
        with self._putting:
            with self._turn:
                waiting = {file: lines for file, lines in self._waiting.items() if lines}
                self._waiting = defaultdict(list)
            for file, lines in waiting.items():
                self._number[file] += 1
                name = f"{LINES}{file}/{self._number[file]:08d}-{self._token}.jsonl"
                try:
                    self._store.put(name, b"".join(lines))
                except Exception as error:  # of a thread: who adds the next line, or waits for these, hears of it
                    self._error = error
                    return
                with self._turn:
                    self._objects[file].add(name)
                    self._num_ahead -= len(lines)

    def flush(self) -> None:
        """Wait until all lines are there; raise what befell some, also in another thread."""
        self.check()
        self._put_waiting()
        self.check()

    def close(self) -> None:
        self._end.set()
