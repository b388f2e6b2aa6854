"""Long jobs under torchrun: killed again and again, and ten thousand images; all of it with `make soak`. The short forms, with
forked ranks: test_t2i.py (nothing is lost) and test_writers.py (what was whole is not made again)."""

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from dglaunch.cli.main import main
from dglaunch.config import WriterName
from support.commands import ROOT, SUPPORT, clean_environment, kill_group
from support.processes import at_work_in, kill, prompts, ranks_of, until, words
from support.results import ledger


def _start(folder: Path, nproc: int, arguments: list[str]) -> "subprocess.Popen[bytes]":
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(nproc)]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*torchrun, "--shutdown-timeout", "5", str(SUPPORT / "counting.py"), *arguments],
            env=clean_environment({"CALLS": str(folder / "calls")}), cwd=ROOT, start_new_session=True, stdout=log,
            stderr=log,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("kills", "num", "seconds"),
    [
        pytest.param(1, 30, 0.3, marks=pytest.mark.slow),
        pytest.param(100, 200, 2.5, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_random_kills_lose_nothing_and_repeat_little(tmp_path: Path, kills: int, num: int, seconds: float) -> None:
    dice = random.Random(5)
    prompts(tmp_path, num, f"[sleep {seconds}]")
    done_kills = 0
    for _ in range(kills):
        nproc = dice.randint(2, 4)
        process = _start(tmp_path, nproc, words(tmp_path, "--writer", dice.choice(get_args(WriterName))))
        # From the first moment of a start to well into its work; now and then before there is any rank.
        end = time.monotonic() + dice.uniform(0.5, 9)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)
        if process.poll() is not None:
            assert process.returncode == 0, (tmp_path / "log").read_text()[-5000:]
            break
        victim = dice.choice([process.pid, *ranks_of(process.pid).values()])
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        done_kills += 1
        until(lambda p=process: p.poll() is not None and not at_work_in(tmp_path))
    process = _start(tmp_path, 3, words(tmp_path))
    assert process.wait(300) == 0, (tmp_path / "log").read_text()[-5000:]
    assert main(["verify", str(tmp_path / "out")]) == 0
    lines = ledger(tmp_path / "out")
    assert len(lines) == num and {line["index"] for line in lines} == set(range(num))
    computed = Counter((tmp_path / "calls").read_text().split())
    twice = sum(computed.values()) - num
    print(f"{done_kills} kills, {num} images, {twice} computed twice")
    assert set(computed) == set(map(str, range(num)))
    assert twice < max(0.05 * num, 3)


@pytest.mark.parametrize(
    "num",
    [
        pytest.param(1500, marks=pytest.mark.slow),
        pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_soak(tmp_path: Path, num: int) -> None:
    """Memory, threads and open files of each rank stay what they were after the first tenth."""
    prompts(tmp_path, num, "[sleep 0.02]")
    process = _start(tmp_path, 4, words(tmp_path))
    samples: dict[int, list[tuple[int, Facts]]] = {}
    ranks: dict[int, int] = {}
    try:
        while process.poll() is None:
            ranks = ranks_of(process.pid) or ranks
            made = _count(tmp_path / "out" / "metadata.jsonl")
            for rank, pid in ranks.items():
                if made and (facts := _facts(pid)) is not None:
                    samples.setdefault(rank, []).append((made, facts))
            time.sleep(0.05)
    finally:
        kill_group(process)
        for pid in ranks.values():
            kill(pid)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert sorted(samples) == [0, 1, 2, 3]
    for rank, told in samples.items():
        # Seconds each, in the short form too: on a busy machine the samples come late.
        first = [facts for made, facts in told if 0.05 * num <= made <= 0.3 * num]
        last = [facts for made, facts in told if 0.7 * num <= made <= 0.95 * num]
        memory, memory_after = (statistics.median(facts.memory for facts in part) for part in (first, last))
        threads, threads_after = (min(facts.threads for facts in part) for part in (first, last))
        files, files_after = (frozenset.intersection(*(facts.files for facts in part)) for part in (first, last))
        print(
            f"rank {rank}: {memory / 2**20:.1f} -> {memory_after / 2**20:.1f} MiB, {threads} -> {threads_after} threads, "
            f"{len(files)} -> {len(files_after)} files"
        )
        assert memory_after < 1.05 * memory
        assert threads_after <= threads
        assert not files_after - files, "open all through the last part of the job, and not in the first"


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@dataclass(frozen=True)
class Facts:
    """Of a process at one moment."""

    memory: int
    """Resident bytes."""
    threads: int
    files: frozenset[str]
    """What its descriptors lead to, with their numbers."""


def _facts(pid: int) -> Facts | None:
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return Facts(int(status["VmRSS"].split()[0]) * 1024, int(status["Threads"]), _files(Path(f"/proc/{pid}/fd")))
    except (OSError, KeyError):
        return None


def _files(folder: Path) -> frozenset[str]:
    found = set()
    for entry in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since: an image that was being written
            found.add(f"{entry.name} {entry.readlink()}")
    return frozenset(found)
