"""Files that lie elsewhere, on this machine: fetched once, whole, of a size, and not from where a stranger must not lead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dglaunch.addresses import Address, is_address, path_or_address, problem_with
from dglaunch.storage import local
from dglaunch.storage.errors import StorageError
from support.s3_server import S3Server
from support.web_server import WebServer


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: S3Server) -> Iterator[WebServer]:
    with WebServer(tmp_path) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        yield found


def test_addresses_are_paths_that_stay_addresses() -> None:
    address = path_or_address("s3://bucket/rows/a.jsonl.gz")
    assert isinstance(address, Address) and isinstance(path_or_address(Path("s3://bucket/a")), Address)
    assert [str(address), str(address.parent / "1.png")] == ["s3://bucket/rows/a.jsonl.gz", "s3://bucket/rows/1.png"]
    assert (address.container, address.key, address.suffixes) == ("bucket", "rows/a.jsonl.gz", [".jsonl", ".gz"])
    assert not is_address("rows/a.csv") and not is_address("file:///etc/passwd") and not is_address("http://host/a")


def test_a_signed_address_is_not_shown() -> None:
    address = Address("https://host.example/a.parquet?X-Amz-Signature=0123")
    for text in (str(address), repr(address), f"{address}", address.name, address.suffix, str(address.parent)):
        assert "0123" not in text
    assert address.full.endswith("0123") and address.suffix == ".parquet"
    assert "user name" in (problem_with(Address("https://me:secret@host/a")) or "")


def test_an_object_is_fetched_once(server: S3Server) -> None:
    server.put(server.bucket("tables"), "rows/a.csv", b"prompt\na fox\n")
    address = Address("s3://tables/rows/a.csv")
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(local.local_file, [address] * 4))
    assert len(paths) == 1 and paths.pop().read_bytes() == b"prompt\na fox\n"
    assert [method for method, _ in server.requests].count("GET") == 1
    server.put("tables", "rows/a.csv", b"prompt\nanother\n")
    assert local.read(address) == b"prompt\nanother\n"


def test_patterns_and_prefixes(server: S3Server) -> None:
    server.bucket("shards")
    for name in ("rows/a.parquet", "rows/b.parquet", "rows/c.csv", "rows/more/d.parquet", "e.parquet"):
        server.put("shards", name, b"x")
    assert list(map(str, local.matching(Address("s3://shards/rows/*.parquet")))) == [
        "s3://shards/rows/a.parquet",
        "s3://shards/rows/b.parquet",
    ]
    assert len(local.matching(Address("s3://shards/rows"))) == 3
    assert local.matching(Address("s3://shards/rows/c.csv")) == [Address("s3://shards/rows/c.csv")]
    for nothing in ("s3://shards/rows/*.txt", "s3://shards/nothing"):
        with pytest.raises(StorageError, match=r"no object fits it|no such object, and none below it"):
            local.matching(Address(nothing))


def test_what_is_too_large(server: S3Server) -> None:
    server.put(server.bucket("huge"), "a.png", bytes(2000))
    with pytest.raises(StorageError, match="larger than 1,000 bytes"):
        local.read(Address("s3://huge/a.png"), most=1000)


def test_the_oldest_go_first(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "MOST_KEPT", 2500)
    server.bucket("sweeping")
    for number in range(4):
        server.put("sweeping", f"{number}", bytes(1000))
        last = local.local_file(Address(f"s3://sweeping/{number}"))
    assert last.exists() and len(list((tmp_path / "cache").rglob("??/[0-9a-f]*"))) == 2


def named(address: Address) -> None:
    """By the user, in a flag."""
    local.fetch_for([address], local._kept.folder)


# -- the web ----------------------------------------------------------------------------------------------------------


def test_a_file_of_the_web_that_the_user_named(web: WebServer) -> None:
    web.files["/a.csv"] = b"prompt\na fox\n"
    address = Address(f"{web.address}/a.csv?key=0123")
    named(address)
    path = local.local_file(address)
    assert path.read_bytes() == b"prompt\na fox\n" and path.suffix == ".csv"
    assert local.local_file(address) == path and web.requests == ["/a.csv?key=0123"]


def test_a_stranger_does_not_lead_into_a_private_network(web: WebServer) -> None:
    web.files["/a.png"] = b"x"
    with pytest.raises(StorageError, match=r"leads to localhost, port \d+, which is 127.0.0.1: no public address"):
        local.read(Address(f"{web.address}/a.png"))
    assert not web.requests


@pytest.mark.parametrize("there", ["https://169.254.169.254/", "http://localhost/a", "file:///etc/passwd"])
def test_nor_by_a_redirect(web: WebServer, there: str) -> None:
    web.files["/a.png"] = lambda: (302, {"Location": there}, b"")
    address = Address(f"{web.address}/a.png")
    named(address)
    with pytest.raises(StorageError, match=r"no public address|is no https address|answered 302"):
        local.read(address)


def test_files_of_the_web_that_fail(web: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(503, {}, b""), (200, {"Content-Length": "9"}, b"half"), (200, {}, b"all of it")])
    web.files["/flaky"] = lambda: next(answers)
    web.files["/large"] = bytes(5000)
    named(Address(web.address))
    assert local.read(Address(f"{web.address}/flaky")) == b"all of it"
    with pytest.raises(StorageError, match="it is larger than 1,000 bytes"):
        local.read(Address(f"{web.address}/large"), most=1000)
    with pytest.raises(StorageError, match="there is no such file"):
        local.read(Address(f"{web.address}/missing?key=0123"))
