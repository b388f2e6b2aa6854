"""One S3 server for all tests of a process that want one; and tables of which each is large."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.s3_server import Faults, S3Server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def running(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """It, without faults at the start of the test, and asked again at once."""
    from dglaunch.storage import retrying

    s3_server.faults = Faults()
    s3_server.requests.clear()
    monkeypatch.setattr(retrying, "FIRST_S", 0.01)
    return s3_server


@pytest.fixture
def all_are_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every table is read in columns; the folder in which they lie meanwhile."""
    monkeypatch.setattr("dglaunch.data.tables.LARGE_ROWS", 1)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"
