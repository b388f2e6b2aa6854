"""The server for the tests of this folder, which find it by the environment."""

from pathlib import Path

import pytest

from dglaunch.storage import local
from support.s3_server import S3Server


@pytest.fixture
def server(running: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Server:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local, "PATIENCE_S", 20.0)
    local._store.cache_clear()
    local.fetch_for([], tmp_path / "cache")
    return running
