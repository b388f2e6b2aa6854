"""A large job, killed again and again: all images are there, none twice, and no rank's memory grows. `make million`."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dglaunch.output import segments
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.ledger_index import LedgerIndex
from support.commands import ROOT, clean_environment, dglaunch
from support.processes import at_work_in, kill, ranks_of, until

NUM = int(os.environ.get("MILLION_IMAGES", "20000"))
KILLS = int(os.environ.get("MILLION_KILLS", "20"))
PLACE = os.environ.get("MILLION_FOLDER")
"""Where the figures (million.json) and the plot (million.png) go, and the job itself, in a folder `job`."""
SAMPLE_S = 2.0


@dataclass
class Told:
    """What was seen of the ranks: start, seconds, images that are there, rank, resident bytes."""

    samples: list[tuple[int, float, int, int, int]] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    """Seconds from each start to its first new image."""


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_a_large_job_that_is_killed_again_and_again(tmp_path: Path) -> None:
    place = tmp_path if PLACE is None else Path(PLACE)
    folder = place / "job"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.jsonl").open("w") as table:
        table.writelines(json.dumps({"prompt": f"a photo of thing number {n}"}) + "\n" for n in range(NUM))
    dice, told = random.Random(7), Told()
    began = time.monotonic()
    marks = sorted(dice.sample(range(NUM), KILLS))
    for start, mark in enumerate([*marks, None]):
        process = _start(folder)
        try:
            for made in _watched(folder, process, start, told):
                if mark is not None and made >= mark:
                    break
            if process.poll() is None:
                victim = dice.choice([process.pid, *ranks_of(process.pid).values()])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                until(lambda p=process: p.poll() is not None and not at_work_in(folder), 120)  # type: ignore[misc]
        finally:
            for pid in at_work_in(folder):
                kill(pid)
        print(f"start {start}: {_made(folder / 'out'):,} images after {time.monotonic() - began:.0f} s", flush=True)
    assert process.returncode == 0, (folder / "log").read_text()[-5000:]
    seconds = time.monotonic() - began
    began = time.monotonic()
    verified = dglaunch("verify", folder / "out")
    assert verified.code == 0, verified.output[-2000:]
    index = LedgerIndex.read(OutputFolder(folder / "out"))
    rows = index.last()
    assert len(index) == len(rows) == NUM, "each once"
    assert index.columns["index"][rows].tolist() == list(range(NUM))
    _report(place, told, seconds, time.monotonic() - began)


def _start(folder: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["t2i", "--backend", "fake", "--batch_size", "8", "--prompts_file", folder / "prompts.jsonl"]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [*command, "-m", "dglaunch", *map(str, words), "--output_dir", str(folder / "out")], env=clean_environment(),
            cwd=ROOT, start_new_session=True, stdout=log, stderr=log,
        )  # fmt: skip


def _watched(folder: Path, process: "subprocess.Popen[bytes]", start: int, told: Told) -> Iterator[int]:
    """How many images are there, every two seconds while the job runs."""
    began, before, is_first = time.monotonic(), _made(folder / "out"), True
    while process.poll() is None:
        made = _made(folder / "out")
        if is_first and made > before:
            is_first = False
            told.starts.append(round(time.monotonic() - began, 1))
        for rank, pid in ranks_of(process.pid).items():
            with contextlib.suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                memory = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
                told.samples.append((start, time.monotonic() - began, made, rank, memory))
        yield made
        time.sleep(SAMPLE_S)


def _made(out: Path) -> int:
    """As many as there are lines: of closed segments, of the open one, of what was published; while that is made, both are there."""
    opened = OutputFolder(out)
    whole = len(segments.closed(out)) * segments.SEGMENT_LINES
    others = [path for path, _ in opened.ledgers() if path.parent.name != segments.FOLDER]
    return min(whole + sum(path.read_bytes().count(b"\n") for path in others if path.exists()), NUM)


def _report(place: Path, told: Told, seconds: float, verify_s: float) -> None:
    figures = {
        "images": NUM, "kills": KILLS, "seconds": round(seconds), "verify_s": round(verify_s, 1),
        "seconds_to_first_image": told.starts, "samples": told.samples,
    }  # fmt: skip
    (place / "million.json").write_text(json.dumps(figures))
    worst = 0.0
    for rank in (0, 1):
        longest = max(range(KILLS + 1), key=lambda n: sum(s[0] == n and s[3] == rank for s in told.samples))
        seen = [memory for start, _, _, r, memory in told.samples if start == longest and r == rank]
        settled = seen[len(seen) // 4 :]
        if len(settled) >= 8:
            first, last = (
                sorted(part)[len(part) // 2] for part in (settled[: len(settled) // 4], settled[-len(settled) // 4 :])
            )
            print(f"rank {rank}: {first / 2**20:.0f} -> {last / 2**20:.0f} MiB in the longest start")
            worst = max(worst, last / first)
    print(f"{NUM:,} images, {KILLS} kills, {seconds:.0f} s, verified in {verify_s:.0f} s; starts: {told.starts}")
    _plot(place / "million.png", told)
    assert worst < 1.1


def _plot(path: Path, told: Told) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.5))
    for rank in (0, 1):
        seen = [(made, memory / 2**20) for _, _, made, r, memory in told.samples if r == rank]
        axes.plot(*zip(*seen), ".", markersize=2, label=f"rank {rank}")
    axes.set(xlabel="images that are there", ylabel="resident MiB", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=110, bbox_inches="tight")
    pyplot.close(figure)
