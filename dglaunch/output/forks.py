"""Work for several processes that are forks of this one: what they work on is there before and is not sent to them, and none of
them outlives it."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import Any, TypeVar

from dglaunch.output.in_window import in_window

Item = TypeVar("Item")
Found = TypeVar("Found")
PR_SET_PDEATHSIG = 1
AHEAD = 3
"""Items that are under way, or done and not taken, for each process."""
_work: Callable[[Any], Any] | None = None


def in_forks(function: Callable[[Item], Found], items: Iterable[Item], processes: int) -> Iterator[Found]:
    """Yield what a function returns for each item, in their order and in bounded memory.

    Args:
        function: what is called; it needs no name that another process would find.
        items: for each of these, which are sent to a process.
        processes: how many; 1: this one.

    Raises:
        OSError: a process was killed.
    """
    if processes == 1:
        yield from map(function, items)
        return
    try:
        with ProcessPoolExecutor(processes, get_context("fork"), _begin, (function, os.getpid())) as pool:
            yield from in_window(pool, _call, items, AHEAD * processes)
    except BrokenExecutor:
        raise OSError("a process that worked on it was killed, as where memory ran out") from None


def _begin(function: Callable[[Any], Any], parent: int) -> None:
    """What a new process does first: it dies with the one that it works for, which alone hears Ctrl-C."""
    global _work
    _work = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    _let_go_of_locks()


def _let_go_of_locks() -> None:
    """A fork shares its parent's locks of folders: these end with the parent, though the fork may take a moment longer to die."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").endswith(".lock"):
                os.dup2(nothing, int(name))


def _call(item: Any) -> Any:
    assert _work is not None, "the process has begun with it"
    return _work(item)
