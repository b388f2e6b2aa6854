"""What the batch scripts do on a real Slurm of two nodes (support/with_slurm). Their text: unit/cli/test_slurm.py."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.commands import ROOT, TESTS
from support.processes import slowness, until
from support.results import ledger, run_json, write_jsonl
from support.selection import rarely
from support.slurm_cluster import Cluster, is_whole, log_of, start_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    process, made = start_cluster(tmp_path_factory.mktemp("cluster"), "--gpus", "4")
    yield made
    process.terminate()
    process.wait(20)


def _made(log: str) -> list[int]:
    """Images that each start made, from its table."""
    return [int(number.replace(",", "")) for number in re.findall(r"images\s+│\s*([\d,]+) made", log)]


def _fake(folder: Path, num: int, marker: str) -> list[str | Path]:
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": f"prompt {n} {marker}"} for n in range(num)])
    return ["t2i", "--backend", "fake", "--batch_size", "1", "--prompts_file", table]


def _scripts() -> list[Path]:
    return sorted([*(ROOT / "slurm").glob("*.sbatch"), *(TESTS / "unit" / "cli" / "golden").glob("*.sbatch")])


@pytest.mark.parametrize("script", _scripts(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_slurm_takes_the_script(cluster: Cluster, script: Path) -> None:
    here = ["--nodes=2", "--gpus-per-node=2", "--cpus-per-task=2", "--time=10", "--partition=gpu"]
    cluster.run("sbatch", "--test-only", *here, script)


@pytest.mark.parametrize("backend", rarely(("fake", "xdit"), {"xdit"}))
def test_multi_node_is_drained_requeued_and_finished(cluster: Cluster, tmp_path: Path, backend: str) -> None:
    """The signal comes in the middle. With xdit: tiny with Ulysses 2 on two nodes, so that each node is a replica."""
    num, split = 32, {"DG_XDIT_ULYSSES_DEGREE": "2"} if backend == "xdit" else {}
    gpus = 2 if split else 1
    table = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"a red circle {n} [sleep 0.4]"} for n in range(num)])
    model = ["t2i", "--model_name", "tiny", "--backend", backend, "--batch_size", "2", "--num_inference_steps", "6"]
    words = [*model, "--prompts_file", table, "--nodes", "2"]
    number = cluster.submit(tmp_path, words, split, gpus)
    cluster.until_made(number, tmp_path / "out", 6)
    cluster.run("scancel", "--signal=USR2", "--batch", number)
    at = time.monotonic()
    until(lambda: run_json(tmp_path / "out")["outcome"] != "running")
    assert time.monotonic() - at < 20 * slowness(), log_of(tmp_path)
    ended = cluster.wait(number)
    log = log_of(tmp_path)
    assert ended["JobState"] == "COMPLETED", log
    assert ended["Restarts"] == "1", log
    assert "Stopped: " in log and "goes back to the queue" in log
    is_whole(tmp_path, num)
    made = _made(log)
    assert len(made) == 2 and sum(made) == num and made[0] >= 6, log
    assert {line["rank"] for line in ledger(tmp_path / "out")} == ({1, 3} if split else {0, 1})
    assert len(list((tmp_path / "logs").glob("*/**/stdout.log"))) == 4 * gpus, "one log for each rank and start"


@pytest.mark.slow
def test_array_shares_the_work_without_overlap(cluster: Cluster, tmp_path: Path) -> None:
    """Four independent nodes; one of them is stopped, and only that one comes back."""
    num = 64
    words = [*_fake(tmp_path, num, "[sleep 0.5]"), "--array", "--nodes", "4"]
    number = cluster.submit(tmp_path, [*words, "--gpus_per_node", "1"])
    cluster.until_made(f"{number}_1", tmp_path / "out", 2, "metadata-node1of4.jsonl")
    cluster.run("scancel", "--signal=USR2", "--batch", f"{number}_1")
    for element in range(4):
        ended = cluster.wait(f"{number}_{element}")
        assert ended["JobState"] == "COMPLETED", log_of(tmp_path)
        assert ended["Restarts"] == ("1" if element == 1 else "0")
    is_whole(tmp_path, num)
    shares = [ledger(tmp_path / "out", f"metadata-node{n}of4.jsonl") for n in range(4)]
    assert [len(share) for share in shares] == [16] * 4
    assert sum(_made(log_of(tmp_path))) == num


@pytest.mark.slow  # the same on one node: test_max_restarts_resumes_after_a_killed_worker
def test_a_killed_rank_of_another_node_is_restarted(cluster: Cluster, tmp_path: Path) -> None:
    num = 60
    number = cluster.submit(tmp_path, [*_fake(tmp_path, num, "[sleep 0.4]"), "--nodes", "2"])
    cluster.until_made(number, tmp_path / "out", 8)
    os.kill(_rank(tmp_path, 3), signal.SIGKILL)
    ended = cluster.wait(number)
    assert ended["JobState"] == "COMPLETED", log_of(tmp_path)
    assert ended["Restarts"] == "0"
    is_whole(tmp_path, num)


def _rank(folder: Path, rank: int) -> int:
    """The process of a rank that works on this folder, on whichever node."""
    for entry in Path("/proc").iterdir():
        try:
            if (
                entry.name.isdigit()
                and f"{folder}/out".encode() in (entry / "cmdline").read_bytes()
                and f"\0RANK={rank}\0".encode() in (entry / "environ").read_bytes()
            ):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"rank {rank} does not run")


@pytest.mark.slow
def test_a_signal_to_the_step_requeues_too(cluster: Cluster, tmp_path: Path) -> None:
    """Preemption sends SIGTERM to the ranks, and the batch shell sees nothing. Both nodes write to one folder, and
    --overwrite concerns the first start only."""
    num = 40
    words = [*_fake(tmp_path, num, "[sleep 0.3]"), "--nodes", "2", "--writer", "node", "--overwrite"]
    number = cluster.submit(tmp_path, words)
    cluster.until_made(number, tmp_path / "out", 3)
    cluster.run("scancel", "--signal=TERM", number)
    ended = cluster.wait(number)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), log_of(tmp_path)
    is_whole(tmp_path, num)
    made = _made(log_of(tmp_path))
    assert len(made) == 2 and sum(made) == num, log_of(tmp_path)


def test_a_mistake_does_not_come_back(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text("no json\n")
    number = cluster.submit(tmp_path, ["t2i", "--backend", "fake", "--prompts_file", tmp_path / "prompts.jsonl"])
    ended = cluster.wait(number)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "0"), log_of(tmp_path)
    assert "not valid JSON" in log_of(tmp_path)


@pytest.mark.slow
def test_a_job_that_never_gets_on_comes_back_as_often_as_it_may(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.submit(tmp_path, [*_fake(tmp_path, 4, "[interrupt] [sleep 1]"), "--max_requeues", "1"])
    ended = cluster.wait(number)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "1"), log_of(tmp_path)


def test_a_name_that_leads_to_the_loopback_is_told_at_once(tmp_path: Path) -> None:
    process, cluster = start_cluster(tmp_path, "--wrong_address")
    try:
        number = cluster.submit(tmp_path, [*_fake(tmp_path, 4, ""), "--nodes", "2"])
        ended = cluster.wait(number)
        assert ended["JobState"] == "FAILED"
        assert "on node2 the name node2 leads to 127.0.1.1" in log_of(tmp_path)
    finally:
        process.terminate()
        process.wait(20)
