"""Parts of a job that lie in buckets and on disks become one, wherever that is to be."""

from pathlib import Path

import pytest

from dglaunch.output import shard_writer
from support.commands import Ended, dglaunch
from support.far_jobs import Job
from support.kept import STORES
from support.results import ledger
from support.s3_server import S3Server

NODES = ({"node_rank": "0", "num_nodes": "2"}, {"node_rank": "1", "num_nodes": "2"})


def parts(server: S3Server, name: str, folder: Path, *always: str) -> list[Job]:
    """Two nodes' shares of one job, with a prefix each."""
    found = []
    for number, node in enumerate(NODES):
        words = [word for flag, value in node.items() for word in (f"--{flag}", value)]
        job = Job(server, f"{name}-{number}", folder, 7, *words, *always)
        ended = job.start()
        assert ended.code == 0, ended.output
        found.append(job)
    return found


def merge(server: S3Server, parts: list[Job | Path], target: Job | Path) -> Ended:
    words = [part.address if isinstance(part, Job) else part for part in (*parts, target)]
    return dglaunch("merge", *words[:-1], "--output_dir", words[-1], **server.environment)


@pytest.mark.slow
def test_into_a_bucket_and_onto_a_disk(running: S3Server, tmp_path: Path) -> None:
    both = parts(running, "merged-files", tmp_path)
    there, here = Job(running, "merged-all", tmp_path, 7), tmp_path / "all"
    for target in (there, here):
        ended = merge(running, [*both], target)
        assert ended.code == 0, ended.output
        assert f"7 images of 2 folders are in {there.address if target is there else here}" in ended.output
    there.assert_whole(7)
    assert sorted(there.objects()) == [*(f"{number:06d}.png" for number in range(7)), "metadata.jsonl", "run.json"]
    assert there.command("verify").code == 0 and dglaunch("verify", here).code == 0
    assert [(here / row["file_name"]).read_bytes() for row in ledger(here)] == [
        there.get(row["file_name"]) for row in there.ledger()
    ]
    again = merge(running, [*both], there)
    assert again.code == 2 and f"{there.address} is not empty" in again.output
    back = Job(running, "merged-back", tmp_path, 7)
    assert merge(running, [here], back).code == 0
    back.assert_whole(7)
    assert dglaunch("verify", here).code == 0, "the folder keeps its images"


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
def test_shards(running: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_IMAGES", 2)
    both = parts(running, f"merged-{store}", tmp_path, "--store", store)
    there = Job(running, f"merged-all-{store}", tmp_path, 7)
    ended = merge(running, [*both], there)
    assert ended.code == 0, ended.output
    there.assert_whole_in_shards(7)
    assert there.command("verify").code == 0
