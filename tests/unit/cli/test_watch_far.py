"""`dglaunch status s3://... --watch`: each look is at the store as it is by then."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from support.far_jobs import Job
from support.pulses import beat_after_each_result
from support.s3_server import S3Server


def test_each_look_is_at_the_store(running: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of two nodes says that it runs, then more, then that it has ended; the second node begins after the first look."""
    job = Job(running, "watched", tmp_path)
    assert job.start().code == 0
    ended = json.loads(job.get("run.json"))
    going = ended | {"outcome": "running", "num_ok": 2, "images_per_s": 1.5, "bytes": 1000, "seconds_left": 9}
    second = "some run/run-node1of2.json"
    steps = [("run.json", going | {"num_ok": 4}), ("run-node1of2.json", going | {"num_ok": 1}), ("run.json", ended)]

    def say(name: str, said: object) -> None:
        running.put(job.bucket, f"some run/{name}", json.dumps(said).encode())

    def sleep(seconds: float) -> None:
        if steps:
            say(*steps.pop(0))
        else:
            running.delete(job.bucket, second)

    say("run.json", going)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: pytest.fail("the watching machine's disk is not the storage")
    )
    running.requests.clear()
    told = job.command("status", "--watch", "--interval", "0.000001")
    lines = told.output.splitlines()
    assert [line.partition(",")[0] for line in lines[:4]] == [
        "2 of 6 images", "4 of 6 images", "5 of 12 images", "7 of 12 images",
    ]  # fmt: skip
    assert told.code == 0 and "6 of 6 images done" in told.output, told.output


def test_the_object_is_put_at_each_beat(running: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(running, "beating", tmp_path)
    seen: list[dict[str, Any]] = []
    beat_after_each_result(monkeypatch, lambda: seen.append(json.loads(job.get("run.json"))))
    assert job.start().code == 0
    assert [(run["outcome"], run["num_ok"]) for run in seen] == [("running", number) for number in range(1, 7)]
