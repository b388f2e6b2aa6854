"""One rank of `conftest.launch`: runs each command of cases.json through dglaunch's own `main`, and writes its exit code.

Also counts the collectives that the model calls, so that a test can tell that the ranks of a replica really talked, and
the calls of the pipeline.
"""

import json
import os
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def count_collectives(counter: Counter[str]) -> None:
    import torch.distributed as dist
    import torch.distributed._functional_collectives as functional

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counter[name] += 1
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

    DiffusersBackend.generate = noted


def pretended(arguments: list[str]) -> Any:
    """There is no GPU here: a case for one gets it pretended."""
    if "cuda" not in arguments:
        return nullcontext()
    from pretend_gpu import PretendGpu

    return PretendGpu()


def main(folder: Path) -> None:
    from dglaunch.__main__ import main as dglaunch

    counter: Counter[str] = Counter()
    count_collectives(counter)
    calls: list[int] = []
    count_calls(calls)
    with open(folder / f"rank{os.environ['RANK']}.jsonl", "w", buffering=1) as report:
        for arguments, environment in json.loads((folder / "cases.json").read_text()):
            counter.clear()
            calls.clear()
            os.environ.update(environment)
            print("CASE", arguments, environment, flush=True)
            with pretended(arguments):
                code = dglaunch(arguments)
            for name in environment:
                del os.environ[name]
            report.write(json.dumps({"code": code, "collectives": counter, "calls": calls}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
