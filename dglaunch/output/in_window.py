"""Work handed to a pool of threads or processes some steps ahead, with what comes back in order and in bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

Item = TypeVar("Item")
Found = TypeVar("Found")


def in_window(pool: Executor, function: Callable[[Item], Found], items: Iterable[Item], window: int) -> Iterator[Found]:
    """Yield what a function returns for each item, in their order; `Executor.map` would take all items, and hold all results.

    Args:
        pool: where it is called.
        function: what is called.
        items: for each of these.
        window: how many are under way, or done and not taken, at most.
    """
    under_way: deque[Future[Found]] = deque()
    for item in items:
        if len(under_way) >= window:
            yield under_way.popleft().result()
        under_way.append(pool.submit(function, item))
    while under_way:
        yield under_way.popleft().result()
