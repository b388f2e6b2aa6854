"""Nodes that come and go on a real Slurm of two: `dglaunch slurm ... --elastic`, torchrun --nnodes 1:2 on each."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.processes import slowness, until
from support.results import ledger, run_json, write_jsonl
from support.slurm_cluster import Cluster, is_whole, log_of, start_cluster

NUM = 64


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One GPU a node, so that each element of the array has a node of its own."""
    process, made = start_cluster(tmp_path_factory.mktemp("cluster"), "--gpus", "1")
    yield made
    process.terminate()
    process.wait(20)


def submit(cluster: Cluster, folder: Path, backend: str = "fake") -> str:
    table = write_jsonl(folder / "prompts.jsonl", [{"prompt": f"a red circle {n} [sleep 4]"} for n in range(NUM)])
    model = ["t2i", "--model_name", "tiny", "--backend", backend, "--batch_size", "1", "--prompts_file", table]
    return cluster.submit(folder, [*model, "--elastic", "--nodes", "2"], gpus=1)


def world_size(out: Path) -> int:
    """Of the world that writes now; 0 between two of them."""
    run = run_json(out)
    return run["topology"]["world_size"] if run["outcome"] == "running" else 0


def in_the_middle(cluster: Cluster, number: str, out: Path, count: int) -> None:
    """Both nodes work, and so many images are there."""
    cluster.until_made(f"{number}_0", out, count)
    until(lambda: world_size(out) == 2 and len({line["rank"] for line in ledger(out)}) == 2, 120)


def kill_node(cluster: Cluster, element: str) -> str:
    """All processes of an element of the array at once, and Slurm learns that its node is down. It takes no job again until it
    is resumed."""
    node = cluster.job(element)["NodeList"]
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    for pid in on_node(node):
        os.kill(pid, signal.SIGKILL)
    cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    return node


def cable(cluster: Cluster, node: str, state: str) -> None:
    """Pull a node's cable or plug it in: while it is out, no connection is closed either."""
    cluster.run("ip", "link", "set", f"cable{node.removeprefix('node')}", state)


def on_node(node: str) -> list[int]:
    """The processes in the network of a node, but for Slurm's own daemon, which is to tell that the node is back."""
    found: dict[str, list[int]] = {}
    networks = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                network, words = os.readlink(entry / "ns" / "net"), (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"slurmd") and node.encode() in words:
                    networks.add(network)
                elif words[0]:
                    found.setdefault(network, []).append(int(entry.name))
    (network,) = networks
    return found[network]


def files(out: Path) -> dict[str, int]:
    """When each image was written."""
    return {line["file_name"]: (out / line["file_name"]).stat().st_mtime_ns for line in ledger(out)}


def ends_well(cluster: Cluster, number: str, folder: Path, before: dict[str, int]) -> list[int]:
    """64 of 64, none twice; how often each element came back."""
    ended = [cluster.wait(f"{number}_{element}", 600) for element in range(2)]
    assert [job["JobState"] for job in ended] == ["COMPLETED"] * 2, log_of(folder)
    is_whole(folder, NUM)
    lines = ledger(folder / "out")
    assert len({frozenset(line) for line in lines}) == 1, "all columns in all lines"
    assert before.items() <= files(folder / "out").items(), "what was there was not made again"
    return [int(job["Restarts"]) for job in ended]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("is_silent", [False, True], ids=["killed", "without_network"])
def test_the_node_that_does_not_host_the_rendezvous_is_lost_and_comes_back(
    cluster: Cluster, tmp_path: Path, is_silent: bool
) -> None:
    """As by a kill of all its processes, or by the loss of its network, of which no packet tells."""
    out = tmp_path / "out"
    number = submit(cluster, tmp_path)
    in_the_middle(cluster, number, out, 8)
    lost = f"{number}_1"
    if is_silent:
        cable(cluster, cluster.job(lost)["NodeList"], "down")
    killed = time.monotonic()
    node = "" if is_silent else kill_node(cluster, lost)
    until(lambda: world_size(out) == 1, 240)
    alone = time.monotonic() - killed
    assert alone < (90 if is_silent else 60) * slowness(), log_of(tmp_path)
    before = files(out)
    until(lambda: len(ledger(out)) > len(before) + 2, 120)
    if is_silent:
        cable(cluster, cluster.job(lost)["NodeList"], "up")
        node = kill_node(cluster, lost)
    cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    until(lambda: world_size(out) == 2, 400)
    print(f"the other went on after {alone:.0f} s; both after {time.monotonic() - killed:.0f} s")
    restarts = ends_well(cluster, number, tmp_path, before)
    assert restarts[0] == 0 and restarts[1] >= 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_node_that_hosts_it_is_lost_and_all_are_requeued(cluster: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    number = submit(cluster, tmp_path)
    in_the_middle(cluster, number, out, 8)
    before = files(out)
    node, killed = kill_node(cluster, f"{number}_0"), time.monotonic()
    cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    until(lambda: world_size(out) == 2 and len(ledger(out)) > len(before) + 4, 600)
    print(f"both went on after {time.monotonic() - killed:.0f} s")
    restarts = ends_well(cluster, number, tmp_path, before)
    assert min(restarts) >= 1
