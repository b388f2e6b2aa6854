"""Calls in forked children: what a library sets for a whole process stays theirs, and one that breaks down ends alone."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar, cast

Returned = TypeVar("Returned")

CHILD_BYTES = 1.5 * 2**30
"""Of the host's memory that a rehearsed rank takes, at most (SD3.5's table of positions has its values)."""


def in_children(calls: Sequence[Callable[[], Returned]]) -> list[Returned | int]:
    """Return what each call returns, or the exit code of a child that died; as many at a time as there are cores and
    memory for."""
    results: dict[int, Returned | int] = {}
    running: dict[Connection, tuple[int, BaseProcess]] = {}
    waiting = list(enumerate(calls))
    while waiting or running:
        while waiting and len(running) < at_a_time():
            number, call = waiting.pop(0)
            receiver, child = _start(call)
            running[receiver] = number, child
        for receiver in cast("list[Connection]", wait(list(running))):
            number, child = running.pop(receiver)
            results[number] = _result(receiver, child)
    return [results[number] for number in range(len(calls))]


def _start(call: Callable[[], object]) -> tuple[Connection, BaseProcess]:
    forking = multiprocessing.get_context("fork")
    receiver, sender = forking.Pipe(duplex=False)
    child = forking.Process(target=_send, args=(call, sender), daemon=True)
    child.start()
    sender.close()
    return receiver, child


def _send(call: Callable[[], object], sender: Connection) -> None:
    sender.send(call())


def _result(receiver: Connection, child: BaseProcess) -> Returned | int:
    try:
        return cast("Returned", receiver.recv())
    except EOFError:
        child.join()
        assert child.exitcode is not None
        return child.exitcode
    finally:
        receiver.close()
        child.join()


def at_a_time() -> int:
    """Return for how many children there are cores and memory."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), int(free // CHILD_BYTES)))
