"""Batch mode (--api_batch) with results in a bucket: the record of a job is an object before the job is ordered."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dglaunch.cli.main import main
from support.api_servers import ApiServer
from support.remote_runs import rows_of, words
from support.s3_server import Faults, S3Server


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.mark.slow
def test_nothing_is_ordered_without_a_record_and_nothing_twice(
    server: ApiServer, store: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [f"number {number}" for number in range(3)]
    bucket = store.bucket("ordered-images")
    given = words(server, "openai", rows_of(tmp_path, prompts), Path("out"), "--api_batch")
    given[given.index("out")] = f"s3://{bucket}/run"
    store.faults.only, store.faults.refuse = ".dglaunch-job-", "AccessDenied"
    assert main(given) == 1
    assert not server.batches.jobs and f"s3://{bucket}/run" in capsys.readouterr().err
    store.faults = Faults()
    store.requests.clear()
    assert main(given) == 0
    assert dict(server.batches.ordered) == dict.fromkeys(prompts, 1)
    records = [path for method, path in store.requests if method == "PUT" and "/.dglaunch-job-" in path]
    renewals = [path for method, path in store.requests if method == "PUT" and path.endswith("leases/owner.json")]
    assert len(renewals) > len(records) > 0, "each is followed by a look at who holds the prefix"
    assert sorted(store.objects(bucket)) == [
        f"run/{name}" for name in ("000000.png", "000001.png", "000002.png", "metadata.jsonl", "run.json")
    ]
    assert main(given) == 0 and server.batches.ordered.total() == 3
