"""How fast and how much an API backend asks: giving way, backing off, and stopping in time. No HTTP in here.

    limiter.take()                         where limiter.is_free(now): servers.py waits for that
    aside = spending.take(0.2, stop)       or Drained: --max_requests or --max_cost is used up
    ... the request is sent, its answer read ...
    spending.settle(aside, cost=0.17)
    limiter.leave()
    limiter.went_well() | limiter.slow_down(started, retry_after)

The number of requests at a time falls by half when a server says that there are too many, and rises again by one for
each round of answers (additive increase, multiplicative decrease), up to what the user allows.
"""

import random
import threading
import time
from collections.abc import Callable

from dglaunch.errors import Drained, UserError

LONGEST_DELAY_S = 60.0
MOST_DOUBLINGS = 64
"""After which any pause is the longest; a server may be gone for days, and a power of two ends at 1023."""
LOOK_EVERY_S = 0.1
"""How often someone who waits looks whether the run is being stopped."""
SHOWN_CHANGES = 20


def share(total: int, part: int, parts: int) -> int:
    """What falls to one of several ranks; the first ones take what does not divide."""
    return total // parts + (part < total % parts)


def doubled(base: float, times: int) -> float:
    """A pause that is doubled so many times, up to LONGEST_DELAY_S."""
    return min(base * 2.0 ** min(times, MOST_DOUBLINGS), LONGEST_DELAY_S)


def delay(attempt: int, base: float, retry_after: float | None) -> float:
    """Seconds before the next try. Jitter keeps those who failed together from coming back together."""
    if retry_after is not None:
        return retry_after + random.uniform(0, base)
    return doubled(base, attempt) * random.uniform(0.5, 1.0)


def sleep(seconds: float, should_stop: Callable[[], bool]) -> None:
    """Wait, unless the run is being stopped.

    Raises:
        Drained: it is.
    """
    end = time.monotonic() + seconds
    while True:
        if should_stop():
            raise Drained
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, LOOK_EVERY_S))


class ConcurrencyLimiter:
    """Lets as many requests through at a time as this rank may have, and fewer when the server asks for it."""

    def __init__(self, workers: int, note: Callable[[str], None], changed: threading.Condition | None = None) -> None:
        self.workers = workers
        self.limit = float(workers)
        self._note = note
        self._changes = 0
        self._active = 0
        self._not_before = 0.0
        self._last_cut = 0.0
        self._begun = time.monotonic()
        self._changed = changed if changed is not None else threading.Condition()
        """Who waits for a place waits for this."""

    def is_free(self, now: float) -> bool:
        """Whether one more request may go out."""
        with self._changed:
            return self._active < int(self.limit) and now >= self._not_before

    @property
    def load(self) -> float:
        """The part of the places that is taken."""
        with self._changed:
            return self._active / self.limit

    def take(self) -> None:
        """Take one request's place, which is free."""
        with self._changed:
            self._active += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._changed:
            self._active -= 1
            self._changed.notify()

    def went_well(self) -> None:
        """An answer came: one more at a time for each round of answers."""
        with self._changed:
            if self.limit < self.workers:
                self.limit = min(self.limit + 1 / self.limit, self.workers)
                if self.limit == self.workers:
                    self._tell(f"back to {self.workers} requests at a time")
                self._changed.notify()

    def only_one(self) -> None:
        """The server failed: one request tries it, and more follow as answers come."""
        with self._changed:
            self.limit = 1.0

    def slow_down(self, started: float, retry_after: float | None) -> None:
        """The server has too many requests. Those that were under way together count as one such answer."""
        with self._changed:
            now = time.monotonic()
            self._not_before = max(self._not_before, now + (retry_after or 0.0))
            if started <= self._last_cut:
                return
            self._last_cut = now
            before, self.limit = int(self.limit), max(self.limit / 2, 1.0)
            if int(self.limit) < before:
                self._tell(f"the server asked to slow down: {before} -> {int(self.limit)} requests at a time")

    def _tell(self, text: str) -> None:
        self._changes += 1
        if self._changes <= SHOWN_CHANGES:
            last = " (later changes are not listed)" if self._changes == SHOWN_CHANGES else ""
            self._note(f"after {time.monotonic() - self._begun:.0f} s {text}{last}")


class SpendLimit:
    """Says no to every further request once the run must not go on; what is under way still comes in.

    What a request may cost at the most is set aside until its answer says what it did cost. Where that is not known, the first
    request goes alone, and what the dearest image so far cost is set aside for the others.
    """

    def __init__(self, max_requests: int | None, max_cost: float | None, note: Callable[[str], None]) -> None:
        self.max_requests = max_requests
        self.max_cost = max_cost
        self.requests = 0
        self.cost = 0.0
        """What answers came to, and what those may have come to that were billed perhaps and never arrived."""
        self._set_aside = 0.0
        self._under_way = 0
        self._dearest: float | None = None
        self._note = note
        self._problem: UserError | None = None
        self._noted = False
        self._changed = threading.Condition()

    def take(self, may_cost: float | None, should_stop: Callable[[], bool]) -> float:
        """Count one request that is about to be sent, and return what was set aside for it; wait while it is not known whether there
        is enough.

        Args:
            may_cost: what it may cost at the most; None: nobody knows.

        Raises:
            Drained: a limit of the user's is reached, or the run is being stopped.
            UserError: the server said something that no further request can change.
        """
        with self._changed:
            while True:
                if self._problem is not None:
                    raise self._problem
                if self.max_requests is not None and self.requests >= self.max_requests:
                    self._stop(f"this rank's part of --max_requests ({self.max_requests}) is used up")
                needed = self._needed(may_cost)
                if needed is not None:
                    self.requests += 1
                    self._under_way += 1
                    self._set_aside += needed
                    return needed
                if not self._under_way:
                    self._stop(
                        f"the next image might go beyond this rank's part of --max_cost ({self.max_cost:g}), of which "
                        f"{self.cost:.4g} is used up"
                    )
                self._changed.wait(LOOK_EVERY_S)
                if should_stop():
                    raise Drained

    def _needed(self, may_cost: float | None) -> float | None:
        """What is set aside for a request; None if it must wait, or must not be sent at all."""
        if self.max_cost is None:
            return 0.0
        if may_cost is None and self._dearest is None:
            return None if self._under_way else 0.0
        needed = max(may_cost or 0.0, self._dearest or 0.0)
        left = self.max_cost - self.cost - self._set_aside
        return needed if left > 0 and needed <= left else None

    def _stop(self, why: str) -> None:
        if not self._noted:
            self._noted = True
            self._note(f"stopped asking, {why}; the same command goes on from here")
        raise Drained

    def settle(self, set_aside: float, cost: float, answered: bool = True) -> None:
        """Count what a request came to, in place of what was set aside for it.

        Args:
            answered: an answer came, so that `cost` says what others may cost.
        """
        with self._changed:
            self._set_aside -= set_aside
            self._under_way -= 1
            self.cost += cost
            if answered:
                self._dearest = max(cost, self._dearest or 0.0)
            self._changed.notify_all()

    def uncounted(self) -> None:
        """An answer says nothing of what it cost."""
        if self.max_cost is not None:
            self.fail(
                UserError(
                    "The server's answers do not report a cost (nor tokens that dglaunch has a price of), so --max_cost cannot "
                    "be kept; the run was stopped after the first answers, which are written. Use --max_requests instead; "
                    "the same command then goes on."
                )
            )

    def fail(self, problem: UserError) -> UserError:
        """From now on every request is refused with this; gives back the first problem."""
        with self._changed:
            self._problem = self._problem or problem
            self._changed.notify_all()
            return self._problem
