"""From `main` to the model a reader meets few functions: the stack inside a backend is read."""

from pathlib import Path

import pytest

from dglaunch.backends.fake import FakeBackend
from dglaunch.cli.main import main
from dglaunch.data.task import Batch
from support.own_frames import own_frames


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
