"""One server for the tests of this folder, without faults at the start of each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dglaunch.storage import local, retrying
from support.s3_server import Faults, S3Server


@pytest.fixture(scope="session")
def running() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    running.faults = Faults()
    running.requests.clear()
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retrying, "FIRST_S", 0.01)
    monkeypatch.setattr(local, "PATIENCE_S", 20.0)
    local._store.cache_clear()
    local.fetch_for([], tmp_path / "cache")
    return running
