"""Scores of results in a bucket: objects beside the ledger, which is not touched; what was scored is not scored again."""

import json
from pathlib import Path

import pytest

from dglaunch.output import scores
from support.commands import Ended, dglaunch
from support.far_jobs import Job
from support.s3_server import Faults, S3Server

MODULE = """
def brightness(images, lines):
    return [sum(image.resize((1, 1)).getpixel((0, 0))) for image in images]

def half(images, lines):
    if any(line["index"] > 2 for line in lines):
        raise ValueError("not this one")
    return [line["index"] for line in lines]
"""


@pytest.fixture
def job(running: S3Server, tmp_path: Path, request: pytest.FixtureRequest) -> Job:
    (tmp_path / "scorers_of_a_bucket.py").write_text(MODULE)
    job = Job(running, f"scores-{request.node.name.replace('_', '-')}"[:60], tmp_path, 6)
    assert job.start().code == 0
    return job


def score(job: Job, function: str, *words: str) -> Ended:
    given = ["score", job.address, "--with", f"scorers_of_a_bucket:{function}", "--batch_size", "1", *words]
    return dglaunch(*given, cwd=job.folder, **job.server.environment)


@pytest.mark.slow
def test_each_image_once(job: Job) -> None:
    before = job.get("metadata.jsonl")
    ended = score(job, "half")
    assert ended.code == 3 and f"{job.address}/scores/half.jsonl" in ended.output, ended.output
    assert [line["score"] for line in job.ledger("scores/half.jsonl")] == [0, 1, 2]
    again = score(job, "half")
    assert again.code == 3 and "0 images scored (3 were before)" in again.output, again.output
    ended = score(job, "half", "--overwrite")
    assert "3 images scored;" in ended.output and len(job.ledger("scores/half.jsonl")) == 3
    assert sorted(name for name in job.objects() if not name.endswith(".png")) == [
        "metadata.jsonl", "run.json", "scores/half.json", "scores/half.jsonl"
    ]  # fmt: skip
    assert job.get("metadata.jsonl") == before
    assert "score_half" in job.command("status").output
    assert job.command("redo", "--filter_rows", "score_half > 1", "--seed_offset", "9").code == 0
    assert [row["seed"] for row in job.ledger()] == [0, 1, 11, 3, 4, 5]


@pytest.mark.slow
def test_the_best_are_a_view(job: Job) -> None:
    ended = score(job, "brightness", "--best_of", "1")
    assert ended.code == 0 and f"{job.address}/best_of_1_brightness" in ended.output, ended.output
    for row in job.ledger("best_of_1_brightness/metadata.jsonl"):
        assert job.get(f"best_of_1_brightness/{row['file_name']}") == job.get(row["file_name"])
        assert row["score_brightness"] > 0


@pytest.mark.slow
def test_what_was_put_before_a_loss_stays(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another machine finds it: the file of one rank of four, not joined."""
    monkeypatch.setattr(scores, "PUT_S", 0.0)
    job.server.faults.only, job.server.faults.refuse = "scores/brightness.jsonl", "AccessDenied"
    ended = score(job, "brightness")
    assert ended.code == 0 and "were not joined" in ended.output, ended.output
    job.server.faults = Faults()
    (part,) = (name for name in job.objects() if name.startswith("scores/brightness-rank"))
    lines = job.get(part).splitlines(keepends=True)
    job.server.put(job.bucket, "some run/scores/brightness-rank2of4.jsonl", b"".join(lines[:2]))
    job.server.delete(job.bucket, f"some run/{part}")
    ended = score(job, "brightness")
    assert ended.code == 0 and "4 images scored (2 were before)" in ended.output, ended.output
    assert [json.loads(line) for line in lines] == job.ledger("scores/brightness.jsonl")
    assert not any("-rank" in name for name in job.objects())
