"""Every way a run is stopped, killed, hung or robbed of its disk, under real torchrun with the fake backend.

After each: no line without its file, no rank left running, and the same command finishes the job.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from dglaunch.run import watchdog
from support.commands import ROOT, dglaunch, end, run_module, start
from support.processes import in_the_middle, prompts, slowness, torchrun, until, words
from support.ranks import World, on_ranks
from support.results import ledger, run_json, write_jsonl
from support.selection import rarely
from support.shortened import DEADLINE_S

NUM = 24
RANKS = 2
HANDLED = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2")


@dataclass(frozen=True)
class Death:
    """Something that happens to a run, and what is to be seen."""

    number: int
    rank: int | None
    outcomes: tuple[str, ...]
    seconds: float
    text: str
    options: tuple[str, ...] = ()
    model: bool = False
    """tiny with Ulysses 2, for ranks that compute together; else the fake backend, where each rank is a leader."""

    @property
    def ranks(self) -> int:
        return 4 if self.model else RANKS

    def words(self, folder: Path, *extra: str) -> list[str]:
        if not self.model:
            return words(folder, *extra)
        xdit = ["--backend", "xdit", "--model_name", "tiny", "--num_inference_steps", "12"]
        return ["t2i", *xdit, *words(folder, *extra)[3:]]

    @property
    def environment(self) -> dict[str, str]:
        return {"DG_XDIT_ULYSSES_DEGREE": "2"} if self.model else {}


DEATHS = {
    "SIGTERM to the agent": Death(signal.SIGTERM, None, ("drained",), 20, "Stopped: "),
    "SIGINT to the agent": Death(signal.SIGINT, None, ("drained",), 20, "Stopped: "),
    "SIGUSR2 to the agent": Death(signal.SIGUSR2, None, ("drained",), 20, "Stopped: ", HANDLED),
    "SIGTERM to one rank": Death(signal.SIGTERM, 1, ("drained",), 20, "Stopped: "),
    "SIGKILL to rank 0": Death(signal.SIGKILL, 0, ("running",), 35, "one of them has died"),
    "SIGKILL to another leader": Death(signal.SIGKILL, 1, ("lost", "drained"), 35, "exitcode  : -9"),
    "SIGKILL to a follower": Death(signal.SIGKILL, 2, ("lost", "drained", "running"), 60, "exitcode  : -9", (), True),
    "SIGKILL to the agent": Death(signal.SIGKILL, None, ("drained",), 20, "torchrun's agent has died"),
    "SIGSTOP to rank 0": Death(signal.SIGSTOP, 0, ("running",), 60, "no sign of life from rank 0"),
    "SIGSTOP to another leader": Death(signal.SIGSTOP, 1, ("lost",), 60, "no sign of life from rank 1"),
}


RARE = (
    "SIGINT to the agent", "SIGUSR2 to the agent", "SIGTERM to one rank", "SIGSTOP to rank 0", "SIGSTOP to another leader",
    "SIGKILL to another leader", "SIGKILL to a follower", "SIGKILL to the agent",
)  # fmt: skip
"""Those that take the same way as another one here; make soak has them."""


def finishes(out: Path, arguments: list[str], total: int = NUM) -> None:
    """What was written is valid, and the same command makes the rest."""
    assert main(["verify", str(out), "--repair"]) in (0, 1)
    kept = {line["file_name"]: line["sha256"] for line in ledger(out)}
    case = on_ranks(out.parent, RANKS, *arguments)
    assert case.codes == [0] * RANKS, case.output
    lines = {line["file_name"]: line["sha256"] for line in ledger(out)}
    assert len(lines) == len(ledger(out)) == total
    assert kept.items() <= lines.items()
    assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize("death", rarely(DEATHS, RARE))
def test_death(tmp_path: Path, death: str) -> None:
    case = DEATHS[death]
    prompts(tmp_path, NUM, "" if case.model else "[sleep 0.3]")
    arguments = case.words(tmp_path, "--stall_timeout", "6")
    job = torchrun(tmp_path, case.ranks, arguments, case.options, case.environment)
    in_the_middle(job, case.ranks, 6)
    at = job.signal(case.number, case.rank)
    if case.number == signal.SIGSTOP:  # torchrun kills it 30 s later; here as soon as all others have left
        until(lambda: job.alive() == [case.rank])
        os.kill(job.ranks[case.rank or 0], signal.SIGKILL)
    until(lambda: not job.alive())
    took = time.monotonic() - at
    ended = job.end()
    assert ended.code != 0
    assert case.text in ended.output, ended.output
    assert took < case.seconds * slowness(), f"{took:.0f} s\n{ended.output}"
    assert run_json(job.out)["outcome"] in case.outcomes, ended.output
    assert main(["status", str(job.out)]) == 130
    assert len(ledger(job.out)) < NUM
    finishes(job.out, [word.replace("xdit", "diffusers") for word in case.words(tmp_path)])
    is_in_the_table(death, _row(death, case, next(line for line in ended.output.splitlines() if case.text in line)))


# -- the table of slurm/README.md ---------------------------------------------------------------------------------

README = ROOT / "slurm" / "README.md"


def test_the_table_has_every_death() -> None:
    assert [row.split(" | ")[0].removeprefix("| ") for row in _table()[2:]] == list(DEATHS)


def is_in_the_table(death: str, row: str) -> None:
    """What was seen of a death is what a reader of slurm/README.md is told. GOLDEN=1 writes its row."""
    if "GOLDEN" in os.environ:
        old = next(line for line in _table() if line.startswith(f"| {death} | "))
        README.write_text(README.read_text().replace(old, row))
    assert row in _table(), "if that is meant: GOLDEN=1 writes it"


def _table() -> list[str]:
    return README.read_text().partition("<!-- deaths -->\n")[2].partition("<!-- end -->")[0].splitlines()


def _row(death: str, case: Death, line: str) -> str:
    told = line[: line.index(case.text) + len(case.text)]
    told = re.sub(r"^\[default\d\]:", "", told).strip().rstrip(":")
    told = re.sub(r"rank \d+", "rank N", told)  # whichever rank noticed first
    return f"| {death} | {told} | {' or '.join(case.outcomes)} | {case.seconds:.0f} s |"


# -- in the middle of a batch -------------------------------------------------------------------------------------


def test_drain_leaves_a_long_batch(tmp_path: Path) -> None:
    """All ranks are in the middle of a batch of many steps when the signal comes."""
    write_jsonl(
        tmp_path / "prompts.jsonl", [{"prompt": f"{n}" if n % 2 == 0 else f"{n} [sleep 600]"} for n in range(6)]
    )
    out, world = tmp_path / "out", World(tmp_path, 3, words(tmp_path))
    until(lambda: len(ledger(out)) >= 3 or world.poll() is not None)
    at = time.monotonic()
    for pid in world.pids:
        os.kill(pid, signal.SIGTERM)
    world.wait(60)
    assert time.monotonic() - at < 20 * slowness()
    assert run_json(out)["outcome"] == "drained", world.output()
    assert len(ledger(out)) == 3


def test_drain_leaves_a_batch_that_does_not_listen(tmp_path: Path) -> None:
    """Inside one long step nobody asks; after the deadline the rank leaves all the same, with its outcome told."""
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "0"}, {"prompt": "1"}, {"prompt": "2 [deaf 600]"}])
    world = World(tmp_path, 1, ["support.shortened:dglaunch", *words(tmp_path)])
    out = tmp_path / "out"
    until(lambda: len(ledger(out)) >= 2 or world.poll() is not None)
    at = time.monotonic()
    os.kill(world.pids[0], signal.SIGTERM)
    world.wait(60)
    assert DEADLINE_S <= time.monotonic() - at < (DEADLINE_S + 5) * slowness()
    assert world.codes() == [130]
    assert "3 s after the signal, left in the middle of image 000002" in world.output()
    assert run_json(out)["outcome"] == "drained"
    assert len(ledger(out)) == 2


def test_the_deadline_lies_before_torchruns_own() -> None:
    """It kills 30 s after its signal; rank 0 waits for the others before that, and they for their requests."""
    assert watchdog.DRAIN_S < watchdog.DEADLINE_S[True] < 20


def test_a_hung_batch_is_told_with_its_stack(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "0"}, {"prompt": "1 [deaf 600]"}])
    process = start([*words(tmp_path, "--stall_timeout", "2")])
    ended = end(process)
    assert ended.code == 1
    assert "rank 0 makes no progress (--stall_timeout 2): image 000001" in ended.output
    assert "in generate" in ended.output
    assert run_json(tmp_path / "out")["outcome"] == "lost"
    assert len(ledger(tmp_path / "out")) == 1


def test_stall_timeout_zero_waits(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "1 [deaf 2]"}])
    assert dglaunch(*words(tmp_path, "--stall_timeout", "0")).code == 0
    assert dglaunch(*words(tmp_path, "--stall_timeout", "-1")).code == 2


@pytest.mark.slow
def test_max_restarts_resumes_after_a_killed_worker(tmp_path: Path) -> None:
    """--overwrite does not remove what the first try has made."""
    prompts(tmp_path, NUM, "[sleep 0.3]")
    options = ("--max-restarts", "1")
    job = in_the_middle(torchrun(tmp_path, RANKS, words(tmp_path, "--overwrite"), options), RANKS, 9)
    job.signal(signal.SIGKILL, 1)
    ended = job.end()
    assert ended.code == 0, ended.output
    told = run_json(job.out)
    assert told["outcome"] == "done" and told["num_skipped"] >= 9
    assert len(ledger(job.out)) == NUM
    assert main(["verify", str(job.out)]) == 0


# -- the disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("writer", ["main", "rank"])
def test_full_disk_stops_all_and_keeps_what_is_there(small_disk: Path, tmp_path: Path, writer: str) -> None:
    prompts(tmp_path, 200)
    (tmp_path / "out").symlink_to(small_disk)
    world = World(tmp_path, RANKS, words(tmp_path, "--writer", writer))
    assert world.wait() != 0 and 0 not in world.codes()
    assert "No space left on device" in world.output() and "Everything written before is valid" in world.output()
    made = _lines(small_disk)
    assert 0 < made < 200
    assert main(["verify", str(small_disk), "--repair"]) == 1
    assert _lines(small_disk) == made, "verify dropped a line of a run that stopped in order"
    assert main(["status", str(small_disk)]) == 1
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert dglaunch(*words(tmp_path)).code == 0
    assert len(ledger(small_disk)) == 200
    assert main(["verify", str(small_disk)]) == 0


def _lines(folder: Path) -> int:
    return sum(len(ledger(folder, path.name)) for path in folder.glob("metadata*.jsonl"))


def test_read_only_folder_is_told_before_a_model_is_loaded(small_disk: Path, tmp_path: Path) -> None:
    prompts(tmp_path, 3)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    (tmp_path / "out").symlink_to(small_disk)
    case = on_ranks(tmp_path, 2, *words(tmp_path))
    assert 0 not in case.codes
    assert case.output.count("cannot be written: Read-only file system") == 1, case.output


def test_folder_removed_in_the_middle(tmp_path: Path) -> None:
    prompts(tmp_path, NUM, "[sleep 0.2]")
    out, world = tmp_path / "out", World(tmp_path, RANKS, words(tmp_path))
    until(lambda: len(ledger(out)) >= 6 or world.poll() is not None)
    shutil.move(out, tmp_path / "moved")
    assert world.wait() != 0 and 0 not in world.codes()
    assert "No such file or directory" in world.output() and "restore the folder" in world.output()
    shutil.rmtree(out, ignore_errors=True)
    shutil.move(tmp_path / "moved", out)
    finishes(out, words(tmp_path))


# -- nothing is left over -----------------------------------------------------------------------------------------


def test_no_thread_or_file_descriptor_is_left_over(tmp_path: Path) -> None:
    prompts(tmp_path, 20)
    ended = run_module("support.twice", tmp_path, *words(tmp_path)[:-2])
    assert ended.code == 0 and "FILES AND THREADS" in ended.output, ended.output
