"""dglaunch started by dglaunch: a command on one rank or, under torchrun, on several ranks of this machine.

    child = start(2, ["t2i", ...], environ, log)
    while child.poll() is None: ...
    child.stop()        # as a batch system asks a job to stop
    child.kill()        # as a machine that loses power

It runs in a session of its own, so that Ctrl-C reaches the command that started it alone, which then stops it in order.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from dglaunch.system import torchrun_command

OF_TORCHRUN = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
"""How the names of the variables begin that torchrun sets for its own ranks."""


class Child(Protocol):
    """A command under way."""

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""

    def stop(self) -> None:
        """Ask all its ranks to stop."""

    def kill(self) -> None:
        """End all its processes at once."""


class Process:
    """A command under way, as a process of this machine with all that it has started."""

    def __init__(self, words: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                words, env=dict(environ), stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        kill([self._process.pid, *descendants(self._process.pid)])  # it first, or it ends by itself without them
        self._process.wait()


def start(ranks: int, words: Sequence[str], environ: Mapping[str, str], log: Path) -> Child:
    """Start `dglaunch WORDS` on so many ranks of this machine; what they say is added to the log."""
    inherited = {name: value for name, value in environ.items() if not name.startswith(OF_TORCHRUN)}
    if ranks > 1:
        return Process(torchrun_command(ranks, "-m", "dglaunch", *words), inherited, log)
    return Process([sys.executable, "-P", "-m", "dglaunch", *words], inherited, log)


def descendants(pid: int) -> list[int]:
    """Return the processes that one has started, and those that they have, as far as /proc tells: torchrun's ranks are in
    sessions of their own, so that no signal reaches all at once."""
    found: list[int] = []
    todo = [pid]
    while todo:
        parent = todo.pop()
        for task in Path(f"/proc/{parent}/task").glob("*"):
            with contextlib.suppress(OSError):
                children = [int(child) for child in (task / "children").read_text().split()]
                found += children
                todo += children
    return found


def kill(pids: Iterable[int]) -> None:
    """End processes at once; those that have ended by now are no matter."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def default_ranks() -> int:
    """Return on how many ranks a command is started where nobody says it: one for each GPU, without any just one."""
    import torch

    return max(torch.cuda.device_count(), 1)


def last_words(log: Path) -> str:
    """Return the last error that a command has told, in one line; torchrun's own summary at the end says nothing of it."""
    return last_error(log.read_text(encoding="utf-8", errors="replace")) if log.exists() else ""


def last_error(output: str) -> str:
    """Return the last error in what a command has printed, in one line."""
    lines = [line for line in output.splitlines() if "Error" in line or "dglaunch: " in line]
    told = [line for line in lines if "ChildFailedError" not in line]
    return told[-1].strip()[:300] if told else ""
