"""From `main` to the model a reader meets few functions: the stack inside a backend is read."""

import sys
from pathlib import Path

import pytest

import dglaunch
from dglaunch.backends.fake import FakeBackend
from dglaunch.cli.main import main
from dglaunch.data.task import Batch

PACKAGE = Path(dglaunch.__file__).parent


def own_frames() -> list[str]:
    """The functions of dglaunch's files that are being run, outermost first."""
    names, frame = [], sys._getframe(1)
    while frame is not None:
        if Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back  # type: ignore[assignment]
    return names[::-1]


def test_four_functions_lie_between_the_command_and_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stacks: list[list[str]] = []
    generate = FakeBackend.generate

    def recording(self: FakeBackend, batch: Batch) -> object:
        stacks.append(own_frames())
        return generate(self, batch)

    monkeypatch.setattr(FakeBackend, "generate", recording)
    assert main(["t2i", "--backend", "fake", "--prompt", "x", "--output_dir", str(tmp_path / "out")]) == 0
    assert stacks == [["main", "run_job", "run", "_Run.make", "Loop.run", "Loop.attempt"]]
