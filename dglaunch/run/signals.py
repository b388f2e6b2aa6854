"""Signals ask a run to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dglaunch.run.watchdog import STOP_SIGNALS


@contextmanager
def stopping(stop: threading.Event) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR2 set `stop`: the run leaves after the denoising step under way; a second SIGINT kills it.

    In another than the main thread they are left alone.
    """
    interrupts = 0

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
