"""One rank of `support.ranks`: runs each command of cases.json through dglaunch's own `main`, and writes its exit code.

Also counts the collectives that the model calls, so that a test can tell that the ranks of a replica really talked, and
the calls of the pipeline.
"""

import importlib
import json
import os
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from support.exit_codes import exit_code

collectives: Counter[str] = Counter()
"""By name: how often this rank called it."""


def count_collectives() -> None:
    """To be called before a library takes the functions by their names."""
    import torch.distributed as dist
    import torch.distributed._functional_collectives as functional

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            collectives[name] += 1
            return function(*args, **kwargs)

        return call

    for module, names in (
        (functional, ("all_to_all_single", "all_gather_single", "permute_tensor")),
        (dist, ("all_gather_into_tensor",)),
    ):
        for name in names:
            if hasattr(module, name):
                setattr(module, name, counted(name, getattr(module, name)))


def count_calls(calls: list[int]) -> None:
    """Note the number of prompts of each call of a pipeline."""
    from dglaunch.backends.diffusers.backend import DiffusersBackend

    generate = DiffusersBackend.generate

    def noted(self: DiffusersBackend, batch: Any) -> Any:
        calls.append(len(batch))
        return generate(self, batch)

    DiffusersBackend.generate = noted  # type: ignore[method-assign]


def pretended(arguments: list[str]) -> Any:
    """There is no GPU here: a case for one gets it pretended."""
    if "cuda" not in arguments:
        return nullcontext()
    from support.pretend_gpu import PretendGpu

    return PretendGpu()


def main(folder: Path, number: int) -> int:
    """The commands of the folder, one after the other; ends with the exit code of the last."""
    cases = json.loads((folder / "cases.json").read_text())
    calls: list[int] = []
    if any("fake" not in arguments for arguments, _ in cases):
        count_calls(calls)
    code = 0
    with open(folder / f"rank{number}.jsonl", "w", buffering=1) as report:
        for n, (arguments, environment) in enumerate(cases):
            _say_into(folder / f"case{n}.rank{number}")
            collectives.clear()
            calls.clear()
            os.environ.update(environment)
            arguments = [word.replace("%node%", os.environ.get("GROUP_RANK", "0")) for word in arguments]
            sys.argv = ["dglaunch", *arguments]
            with pretended(arguments):
                code = _code(arguments)
            for name in environment:
                del os.environ[name]
            report.write(json.dumps({"code": code, "collectives": collectives, "calls": calls}) + "\n")
    from dglaunch.distributed.channel import leave

    leave()
    return code


def _code(words: list[str]) -> int:
    """What `main` made of the command; `module:function` stands for a function of the tests instead."""
    from dglaunch.cli.main import main

    module, _, name = words[0].partition(":")
    if not name:
        return exit_code(main, words)
    function = getattr(importlib.import_module(module), name)
    return exit_code(lambda rest: int(function(*rest)), words[1:])


def _say_into(path: Path) -> None:
    """From here on, what this process says on whatever level goes to this file."""
    sys.stdout.flush()
    sys.stderr.flush()
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.close(out)
