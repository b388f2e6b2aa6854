"""Real ranks on gloo without the 8 s that each start of torchrun takes: forks of a process that has imported everything.

    launch(folder, 2, [(["t2i", ...], {}), ...])        commands one after the other in one world of two ranks
    on_ranks(folder, 2, "t2i", ...)                     one command
    world = World(folder, 2, [...]); world.kill()       one world, to do something to it meanwhile

What torchrun itself does (its exit code, its summary, signals, restarts) needs a real one: `support.processes`. Here this
process holds the store that torchrun's agent would hold.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.commands import ROOT, Ended, clean_environment

Command = tuple[Sequence[str | Path], Mapping[str, str]]
"""Arguments and variables."""


@dataclass
class Case:
    """One command of those that `launch` runs."""

    arguments: list[str]
    environment: dict[str, str]
    codes: list[int] = field(default_factory=list)
    """By rank."""
    collectives: list[dict[str, int]] = field(default_factory=list)
    calls: list[list[int]] = field(default_factory=list)
    """By rank: the number of prompts of each call of a pipeline."""
    output: str = ""
    """Of all ranks, one after the other."""


class Server:
    """The process that is forked; started when the first test needs it, and ended with the tests."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.rank_server"], env=clean_environment(), cwd=ROOT, text=True,
            start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        atexit.register(self.close)
        assert self._answer()["threads"] == 1, "a fork would copy the locks of the other threads"

    def fork(self, wanted: dict[str, Any]) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wanted) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"the server of the ranks has died:\n{self.log.read()[-5000:]}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()  # it ends its ranks and itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()


_servers: list[Server] = []


def _server() -> Server:
    if not _servers or _servers[0].process.poll() is not None:
        _servers[:] = [Server()]
    return _servers[0]


class World:
    """Ranks that run one or several commands together, on one machine or on `nodes` that are only said to be several.

    In an argument, %node% stands for the number of the rank's node. Not `distributed`, it is one process by itself. Worlds
    with the same `run_id` are those that one torchrun forms, one after the other.
    """

    def __init__(
        self, folder: Path, nproc: int, arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None,
        *, more: Sequence[Command] = (), nodes: int = 1, distributed: bool = True, run_id: str | None = None,
    ) -> None:  # fmt: skip
        self.nproc = nproc
        self.folder = Path(tempfile.mkdtemp(prefix=f"world{nproc}-", dir=folder))
        self.cases = [
            Case([str(word) for word in words], dict(own)) for words, own in [(arguments, environment or {}), *more]
        ]
        (self.folder / "cases.json").write_text(json.dumps([[case.arguments, case.environment] for case in self.cases]))
        places = self._torchrun_variables(nodes, run_id or uuid.uuid4().hex) if distributed else [{}] * nproc
        wanted = {
            "folder": str(self.folder), "environments": [clean_environment() | place for place in places],
            "cwd": str(ROOT),
        }  # fmt: skip
        self.pids: list[int] = _server().fork(wanted)

    def _torchrun_variables(self, nodes: int, run_id: str) -> list[dict[str, str]]:
        """What torchrun would tell each of its workers."""
        from torch.distributed import TCPStore

        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent holds it
        local = self.nproc // nodes
        common = {
            "WORLD_SIZE": str(self.nproc), "LOCAL_WORLD_SIZE": str(local), "GROUP_WORLD_SIZE": str(nodes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._store.port), "TORCHELASTIC_RUN_ID": run_id,
            "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0",
            "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        return [
            common | {"RANK": str(n), "LOCAL_RANK": str(n % local), "GROUP_RANK": str(n // local)}
            for n in range(self.nproc)
        ]

    def codes(self) -> list[int | None]:
        """By rank: how it ended, or None while it runs."""
        files = [self.folder / f"ended{number}" for number in range(self.nproc)]
        return [int(path.read_text()) if path.exists() else None for path in files]

    def poll(self) -> int | None:
        """None while a rank runs; then 0 if all ended well, else 1, as torchrun's own exit code."""
        codes = self.codes()
        return None if None in codes else int(any(codes))

    def kill(self) -> None:
        """SIGKILL to all ranks at once, and wait until they are gone."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        limit = time.monotonic() + 60
        while self.poll() is None:
            assert time.monotonic() < limit, "a killed rank does not end"
            time.sleep(0.01)

    def alive(self) -> list[int]:
        """The ranks that have not ended."""
        return [rank for rank, code in enumerate(self.codes()) if code is None]

    def wait(self, timeout: float = 300) -> int:
        """Until all have ended; `timeout` is for one command. As torchrun does, it stops the others once one has failed
        without them."""
        done, limit, failed_at = 0, time.monotonic() + timeout, None
        while (code := self.poll()) is None:
            now = time.monotonic()
            if (reported := self._reported()) > done:
                done, limit = reported, now + timeout
            if any(self.codes()) and failed_at is None:
                failed_at = now
            if now > limit or (failed_at is not None and now - failed_at > 60):
                self.kill()
                pytest.fail(f"ranks that do not end ({self.codes()}, {done} reports):\n{self.output()[-20_000:]}")
            time.sleep(0.02)
        return code

    def _reported(self) -> int:
        """How many commands have ended, summed over the ranks."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.glob("rank*.jsonl"))

    def output(self, number: int | None = None) -> str:
        """What the ranks said, in one case or in all."""
        pattern = "case*" if number is None else f"case{number}.rank*"
        return "\n".join(
            path.read_text(errors="replace") for path in sorted(self.folder.glob(pattern)) if path.suffix != ".json"
        )

    def results(self) -> list[Case]:
        """The cases with what became of them on each rank; all ranks must have come through all cases."""
        for rank in range(self.nproc):
            path = self.folder / f"rank{rank}.jsonl"
            lines = path.read_text().splitlines() if path.exists() else []
            assert len(lines) == len(self.cases), f"rank {rank} ended in case {len(lines)}:\n{self.output()[-20_000:]}"
            for case, line in zip(self.cases, lines):
                told = json.loads(line)
                case.codes.append(told["code"])
                case.collectives.append(told["collectives"])
                case.calls.append(told["calls"])
        for number, case in enumerate(self.cases):
            case.output = self.output(number)
        shutil.rmtree(self.folder)
        return self.cases


def launch(folder: Path, nproc: int, commands: Sequence[Command]) -> list[Case]:
    """Run several commands one after the other in one world."""
    if not commands:
        return []
    (arguments, environment), *more = commands
    world = World(folder, nproc, arguments, environment, more=more)
    world.wait()
    return world.results()


def launch_planned(
    folder: Path, planned: Mapping[str, tuple[int, Sequence[str | Path], Mapping[str, str]]]
) -> dict[str, tuple[Path, Case]]:
    """Run commands by name, each on so many ranks with these variables, those of one number of ranks in one world.

    Returns:
        By name: its folder, which is FOLDER/NAME, and how it ended.
    """
    results: dict[str, tuple[Path, Case]] = {}
    for world in sorted({world for world, _, _ in planned.values()}):
        names = [name for name, (needed, _, _) in planned.items() if needed == world]
        commands = [([*planned[name][1], "--output_dir", folder / name], planned[name][2]) for name in names]
        for name, case in zip(names, launch(folder, world, commands)):
            results[name] = (folder / name, case)
    return results


def on_ranks(folder: Path, nproc: int, *arguments: str | Path, **environment: str) -> Case:
    """Run one command in a world of its own."""
    (case,) = launch(folder, nproc, [(arguments, environment)])
    return case


def run_forked(folder: Path, *arguments: str | Path, **environment: str) -> Ended:
    """One process by itself; its first argument may be a function of the tests or of a tool, as `module:function`."""
    world = World(folder, 1, arguments, environment, distributed=False)
    code = world.wait()
    return Ended(code and (world.codes()[0] or 0), world.output())
