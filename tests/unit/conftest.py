"""One S3 server for all tests of a process that want one."""

from collections.abc import Iterator

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
