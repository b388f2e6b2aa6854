"""dglaunch in a fork that dies by SIGKILL at one step of what it does to the file system: before it, and in the middle of a
line where that is one. A run that has fewer steps ends as always."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from support.commands import dglaunch

STEPS = ("replace", "link", "rename", "unlink")
KILLED = -signal.SIGKILL


def killed_at(number: int, *words: str | Path) -> int:
    """How a command ended, as a shell would say it, that is killed at this step (counted from 0)."""
    child = os.fork()
    if not child:
        try:
            os._exit(_die_at(number, *words))
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _die_at(number: int, *words: str | Path) -> int:
    left = number

    def is_last() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if is_last():
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments, **options)

        return call

    def append(stream: Any, record: Any) -> None:
        if is_last():
            stream.write(b'{"file_name": "0000')
            os.kill(os.getpid(), signal.SIGKILL)
        whole(stream, record)

    from dglaunch.output.lines import append_line as whole

    for name in STEPS:
        setattr(os, name, watched(getattr(os, name)))
    with (
        mock.patch("dglaunch.output.writer.append_line", append),
        mock.patch("dglaunch.output.replaced.append_line", append),
    ):
        return dglaunch(*words).code
