"""What a run says of itself while it goes on (dglaunch/run/pulse.py), at times that a test knows."""

from collections.abc import Callable

import pytest

from dglaunch.data.task import Result
from dglaunch.run.pulse import Pulse
from dglaunch.run.report import Report


def beat_after_each_result(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> None:
    """Let the pulse beat when a result was counted, and at no other time; then call this."""
    pulses: list[Pulse] = []
    monkeypatch.setattr(Pulse, "start", lambda self: pulses.append(self))
    monkeypatch.setattr(Pulse, "stop", lambda self: None)
    update = Report.update

    def beaten(self: Report, result: Result) -> None:
        update(self, result)
        pulses[-1].beat()
        then()

    monkeypatch.setattr(Report, "update", beaten)
