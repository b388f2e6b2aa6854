"""Asking again: what may pass is tried until it passes, the patience is at its end, or asking again changes nothing."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from dglaunch.storage.errors import TEMPORARY, StorageError

Value = TypeVar("Value")
FIRST_S, LONGEST_S = 0.25, 20.0
"""Seconds before the first repetition, at most; doubled with each, up to the second."""
SLOW_S = 3.0
PATIENCE_S = 300.0
"""Seconds for which an operation is tried."""


@dataclass(slots=True)
class Retries:
    """How patient the operations of a store are, and how often they had to be."""

    patience: float = PATIENCE_S
    count: int = 0
    """Requests that were sent again."""
    slow: Callable[[StorageError], None] | None = None
    """Called once, when something has not passed for SLOW_S."""
    given_up: threading.Event = field(default_factory=threading.Event)
    """Set when something did not pass in all that time: what is asked after it, as the run ends, is asked once."""

    def __call__(self, ask: Callable[[], Value]) -> Value:
        """Return what `ask` returns in the end.

        Raises:
            StorageError: it did not pass.
        """
        begun = time.monotonic()
        deadline = begun + self.patience
        tries = 0
        while True:
            tries += 1
            try:
                return ask()
            except StorageError as error:
                pause = random.uniform(0.5, 1.0) * min(FIRST_S * 2 ** min(tries, 12), LONGEST_S)
                left = deadline - time.monotonic()
                if error.kind != TEMPORARY or left <= 0 or self.given_up.is_set():
                    if error.kind == TEMPORARY:
                        self.given_up.set()
                    raise _told(error, tries, self.patience) from None
                if (tell := self.slow) is not None and time.monotonic() + pause - begun > SLOW_S:
                    self.slow = None
                    tell(error)
            self.count += 1
            self.given_up.wait(min(pause, left))


def _told(error: StorageError, tries: int, patience: float) -> StorageError:
    if error.kind != TEMPORARY or tries == 1:
        return error
    return StorageError(f"{error.strerror}; asked {tries} times within {patience:.0f} s", error.kind)
