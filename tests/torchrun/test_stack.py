"""From the command to the pipeline's call a reader meets at most nine functions of dglaunch: the stack is read there."""

import inspect
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.own_frames import own_frames

MOST = 9


def test_at_most_nine_functions_lie_between_the_command_and_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import FluxPipeline

    stacks: list[list[str]] = []
    call = FluxPipeline.__call__

    def recording(self: FluxPipeline, *args: object, **kwargs: object) -> object:
        stacks.append(own_frames())
        return call(self, *args, **kwargs)

    vars(recording)["__signature__"] = inspect.signature(call)  # the backend asks which arguments the pipeline takes
    monkeypatch.setattr(FluxPipeline, "__call__", recording)
    words = [
        "t2i",
        "--model_name",
        "tiny",
        "--prompt",
        "a red circle",
        "--num_inference_steps",
        "1",
        "--encode",
        "inline",
    ]
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 0
    (stack,) = stacks
    assert stack[0] == "main" and stack[-1] == "DiffusersBackend.generate"
    assert len(stack) <= MOST, stack
