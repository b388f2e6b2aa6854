"""Objects on their way: put by threads beside the work, so many at a time, and no more bytes of them than there is room for.

with a full room `add` waits; after an error it raises; `flush` waits until all are there
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from dglaunch.storage.store import Store

AT_A_TIME = 8
MOST_OBJECTS, MOST_BYTES = 16, 256 << 20
"""On their way, at most: what a killed process may lose, and the memory that a slow store may take."""


class Uploads:
    """What a writer puts; used by one thread, while others put."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="put objects")
        self._changed = threading.Condition()
        self._count = self._bytes = 0
        self._error: Exception | None = None

    def add(self, name: str, data: bytes, then: Callable[[], None]) -> None:
        """Put an object and call `then` when it is there, in another thread; wait while there is no room.

        Raises:
            OSError: an object could not be put before; those behind it are not tried.
        """

        def put() -> None:
            self._store.put(name, data)
            then()

        self.do(len(data), put)

    def do(self, size: int, work: Callable[[], None]) -> None:
        """Do something in another thread, as `add` does: it is waited for, stopped and told of in the same way.

        Args:
            size: bytes that it holds.
            work: what is done.

        Raises:
            OSError: as `add`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._has_room(size))
            self._raise()
            self._count, self._bytes = self._count + 1, self._bytes + size
        self._pool.submit(self._one, size, work)

    def _has_room(self, size: int) -> bool:
        return not self._count or (self._count < MOST_OBJECTS and self._bytes + size <= MOST_BYTES)

    def _one(self, size: int, work: Callable[[], None]) -> None:
        error: Exception | None = self._error
        try:
            if error is None:
                work()
        except Exception as failed:  # of a thread: who adds the next one hears of it
            error = failed
        with self._changed:
            self._error = self._error or error
            self._count, self._bytes = self._count - 1, self._bytes - size
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all that was added is there.

        Raises:
            OSError: something could not be put.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._count)
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
