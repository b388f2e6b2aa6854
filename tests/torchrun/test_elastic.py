"""Worlds that lose and gain nodes, as `torchrun --nnodes 1:4` forms them one after the other: nothing is lost or made twice.

The cheap form has ranks whose nodes are only said to be several; the slow one has two agents of a real torchrun. On a real
Slurm: system/test_slurm_elastic.py.
"""

import os
import signal
import time
import uuid
from pathlib import Path

from dglaunch.cli.main import main
from support.processes import prompts, slowness, until, words
from support.ranks import World
from support.results import ledger, run_json

NUM = 24


def is_whole(out: Path, num: int = NUM) -> None:
    """Each image once, whole, and with the columns that every line has."""
    lines = ledger(out)
    assert sorted(line["index"] for line in lines) == list(range(num))
    assert len({frozenset(line) for line in lines}) == 1
    assert main(["verify", str(out)]) == 0


def in_the_middle(world: World, out: Path, count: int) -> dict[str, str]:
    """What there is once so many images are made."""
    until(lambda: len(ledger(out)) >= count or world.poll() is not None)
    assert world.poll() is None, world.output()
    return {line["file_name"]: line["sha256"] for line in ledger(out)}


def test_a_world_that_lost_a_node_and_one_that_gained_it_go_on(tmp_path: Path) -> None:
    """Three worlds of one torchrun: of two nodes, of the one that is left, of both; --overwrite is the first one's alone,
    although no agent has counted a restart."""
    prompts(tmp_path, NUM, "[sleep 0.6]")
    run_id, out = uuid.uuid4().hex, tmp_path / "out"
    command = words(tmp_path, "--overwrite")
    assert World(tmp_path, 1, words(tmp_path, "--limit", "2")).wait() == 0  # another torchrun's, to be removed
    earlier = {line["file_name"]: (out / line["file_name"]).stat().st_mtime_ns for line in ledger(out)}
    first = World(tmp_path, 2, command, nodes=2, run_id=run_id)
    until(lambda: (out / "run.json").exists() and run_json(out)["num_total"] == NUM)
    kept = in_the_middle(first, out, 5)
    assert all((out / name).stat().st_mtime_ns != at for name, at in earlier.items())
    os.kill(first.pids[1], signal.SIGKILL)
    at = time.monotonic()
    until(lambda: first.poll() is not None, 60)
    assert time.monotonic() - at < 20 * slowness(), "what is left of a world leaves soon, whatever --stall_timeout is"
    assert "rank 1 is gone" in first.output() and run_json(out)["outcome"] in ("drained", "lost")
    second = World(tmp_path, 1, command, run_id=run_id)
    kept |= in_the_middle(second, out, len(ledger(out)) + 3)
    os.kill(second.pids[0], signal.SIGTERM)  # as the agent does when a node wants to join
    until(lambda: second.poll() is not None, 60)
    third = World(tmp_path, 3, command, nodes=3, run_id=run_id)
    assert third.wait() == 0, third.output()
    is_whole(out)
    assert kept.items() <= {line["file_name"]: line["sha256"] for line in ledger(out)}.items()
    assert run_json(out)["num_skipped"] >= len(kept) and len(run_json(out)["topology"]["agents"]) == 1
    again = World(tmp_path, 2, [*command, "--limit", "2"], nodes=2)
    assert again.wait() == 0, again.output()
    assert run_json(out)["num_skipped"] == 0, "another torchrun's --overwrite is its own"
