"""A command in a fork of this process that is killed after a while, wherever it is."""

import os
import signal
import time
from pathlib import Path

from support.commands import dglaunch

KILLED = -signal.SIGKILL
LONGEST_S = 120.0


def killed_after(seconds: float, *words: str | Path) -> int:
    """How a command ended, as a shell would say it, that is killed after so many seconds unless it has ended by then."""
    child = os.fork()
    if not child:
        try:
            os._exit(dglaunch(*words).code)
        finally:
            os._exit(99)
    until = time.monotonic() + min(seconds, LONGEST_S)
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
