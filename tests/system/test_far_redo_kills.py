"""`dglaunch redo` in a bucket, killed at each of its writing requests in turn: the same command comes to its end, and nothing is lost.

`tests/unit/output/test_far_changes.py` has one such step in the usual tests.
"""

import hashlib
import signal
from pathlib import Path

import pytest

from support.commands import kill_group, start
from support.far_jobs import Job
from support.kept import STORES
from support.s3_server import Faults, S3Server

AGAIN = ("--filter_rows", "1,2", "--seed_offset", "100")


def killed_at(server: S3Server, step: int, job: Job) -> bool:
    """Start it and kill it before the store has seen this writing request; False: it has fewer."""
    server.faults = Faults(stops_at=step)
    process = start(["redo", job.address, *AGAIN], server.environment)
    while process.poll() is None and not server.faults.has_stopped.wait(0.02):
        continue
    was_stopped = server.faults.has_stopped.is_set()
    kill_group(process)
    said, _ = process.communicate()
    server.faults.let_go.set()
    assert process.returncode == (-signal.SIGKILL if was_stopped else 0), said
    server.faults = Faults()
    return was_stopped


def kept(job: Job) -> dict[str, str]:
    """The hashes of what was replaced: of each image that has a line there."""
    lines = {row["file_name"]: row["sha256"] for row in job.ledger("replaced/metadata.jsonl")}
    for name, digest in lines.items():
        assert hashlib.sha256(job.get(f"replaced/{name}")).hexdigest() == digest
    return lines


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("store", ["files", *STORES])
def test_killed_at_each_step(tmp_path: Path, store: str) -> None:
    with S3Server() as server:
        for step in range(1000):
            job = Job(server, f"redo-{store}-{step}", tmp_path, 4, "--store", store)
            assert job.start().code == 0
            before = {row["index"]: row["sha256"] for row in job.ledger()}
            was_killed = killed_at(server, step, job)
            ended = job.command("redo", *AGAIN)
            assert ended.code == 0, (step, ended.output)
            assert job.command("verify").code == 0, step
            after = {row["index"]: row["sha256"] for row in job.ledger()}
            assert [index for index in before if before[index] != after[index]] == [1, 2], step
            assert {before[1], before[2]} <= set(kept(job).values()), step
            assert ".dglaunch-redo.json" not in job.objects(), step
            again = job.start()
            assert again.code == 0 and "4 there before, of 4" in again.output, (step, again.output)
            if not was_killed:
                print(f"{store}: killed at {step} requests")
                assert step > 10
                return
