"""Ranks as processes: start a job under torchrun, wait until it is in the middle, and do something to one of them."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.commands import ROOT, Ended, clean_environment, end
from support.results import ledger, write_jsonl


@dataclass
class Job:
    """A job under torchrun and its ranks."""

    folder: Path
    process: "subprocess.Popen[str]"
    ranks: dict[int, int] = field(default_factory=dict)
    """Rank -> process id."""

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def signal(self, number: int, rank: int | None = None) -> float:
        """To a rank, or to torchrun's agent. Returns the time."""
        os.kill(self.process.pid if rank is None else self.ranks[rank], number)
        return time.monotonic()

    def end(self, timeout: float = 240) -> Ended:
        try:
            return end(self.process, timeout)
        finally:
            for pid in self.ranks.values():  # torchrun starts each rank in a session of its own
                kill(pid)

    def alive(self) -> list[int]:
        return [rank for rank, pid in self.ranks.items() if is_alive(pid)]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def ranks_of(agent: int) -> dict[int, int]:
    """The workers of one torchrun agent."""
    found: dict[int, int] = {}
    try:
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    except OSError:
        return found
    for pid in children:
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in variables:
            if variable.startswith(b"RANK="):
                found[int(variable[5:])] = int(pid)
    return found


def at_work_in(folder: Path) -> list[int]:
    """Every process that has this folder in its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{folder}/out".encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return [pid for pid in found if is_alive(pid)]


def prompts(folder: Path, count: int, marker: str = "") -> Path:
    return write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n} {marker}"} for n in range(count)])


def words(folder: Path, *extra: str | Path) -> list[str]:
    """The command of a job on the fake backend with batches of one."""
    table = folder / "prompts.jsonl"
    base = ["t2i", "--backend", "fake", "--batch_size", "1", "--prompts_file", table, "--output_dir", folder / "out"]
    return list(map(str, [*base, *extra]))


def torchrun(
    folder: Path,
    nproc: int,
    arguments: Sequence[str],
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Job:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(nproc), *options]
    process = subprocess.Popen(
        [*command, "-m", "dglaunch", *arguments], env=clean_environment(environment), cwd=ROOT, text=True,
        start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return Job(folder, process)


def nodes(
    folders: Sequence[Path], arguments: Sequence[str | Path], *, nproc: int = 2, paths: Sequence[str] = ("", "")
) -> list[Job]:
    """A torchrun agent for each folder: the nodes of one world. `paths` come before PYTHONPATH on each."""
    name = uuid.uuid4().hex
    agent = ["--nnodes", str(len(folders)), "--nproc_per_node", str(nproc), "--rdzv_backend", "c10d", "--rdzv_id", name]
    place = ["--rdzv_endpoint", f"localhost:{_free_port()}", "--local-addr", "localhost"]
    environment = clean_environment({"GLOO_SOCKET_IFNAME": "lo"})
    common = environment["PYTHONPATH"]
    jobs = []
    for folder, path in zip(folders, paths):
        command = [sys.executable, "-m", "torch.distributed.run", *agent, *place, "-m", "dglaunch", *arguments]
        process = subprocess.Popen(
            [*map(str, command), "--output_dir", str(folder / "out")], env={**environment, "PYTHONPATH": f"{path}:{common}"}, cwd=ROOT, text=True,
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        jobs.append(Job(folder, process))
    return jobs


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return int(server.getsockname()[1])


def until(condition: Callable[[], Any], seconds: float = 180, step: float = 0.05) -> Any:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(step)
    return value


def slowness() -> float:
    """How many times longer things may take here and now: 1 where each process has a core."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def in_the_middle(job: Job, nproc: int, images: int) -> Job:
    """Wait until the job has made some images, and learn its ranks."""
    until(lambda: len(ledger(job.out)) >= images or job.process.poll() is not None)
    job.ranks = ranks_of(job.process.pid)
    assert len(job.ranks) == nproc, f"{job.ranks}\n{job.end(5).output}"
    return job
