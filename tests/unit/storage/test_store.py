"""Objects over HTTP, on a server that fails now and then: whole or not there, tried until it passes, and no key in any text."""

import time
from pathlib import Path

import pytest

from dglaunch.addresses import Address
from dglaunch.errors import UserError
from dglaunch.storage import retrying
from dglaunch.storage.errors import NoObject, StorageError
from dglaunch.storage.retrying import Retries
from dglaunch.storage.store import Store
from support.s3_server import ACCESS_KEY, SECRET, TOKEN, S3Server

MOST = 1 << 30


def store_in(server: S3Server, bucket: str, patience: float = 20.0) -> Store:
    return Store(Address(f"s3://{server.bucket(bucket)}/some prefix/ü"), Retries(patience))


def test_what_is_put_is_there(server: S3Server) -> None:
    store = store_in(server, "plain")
    store.put("a.png", b"abc")
    assert store.get("a.png", MOST) == b"abc" and server.get("plain", "some prefix/ü/a.png") == b"abc"
    assert [(found.name, found.size) for found in store.list()] == [("a.png", 3)]
    store.delete(["a.png", "never"])
    with pytest.raises(NoObject):
        store.get("a.png", MOST)


def test_the_first_one_wins(server: S3Server) -> None:
    store = store_in(server, "first")
    version = store.put_if_absent("owner", b"me")
    assert version is not None and store.put_if_absent("owner", b"other") is None
    assert store.put_if_absent("owner", b"me") is not None  # its own, of which the answer was lost
    newer = store.put_if_same("owner", b"me 2", version)
    assert newer is not None and store.put_if_same("owner", b"other", version) is None
    assert store.read("owner") == (b"me 2", newer)


def test_a_server_that_fails_now_and_then(server: S3Server) -> None:
    store = store_in(server, "failing")
    server.faults.share = 0.3
    for number in range(10):
        store.put(f"{number:02}", bytes([number]) * 1000)
        assert store.put_if_absent(f"only/{number:02}", b"x%d" % number) is not None
    assert all(store.get(f"{number:02}", MOST) == bytes([number]) * 1000 for number in range(10))
    assert len(list(store.list())) == 20 and store.retries.count > 3
    store.delete([found.name for found in store.list()])
    assert not list(store.list())


@pytest.mark.slow
def test_many_names_are_listed_page_by_page(server: S3Server) -> None:
    store = store_in(server, "many")
    for number in range(1003):
        server.put("many", f"some prefix/ü/{number:04}", b"")
    server.faults.share = 0.3
    assert [found.name for found in store.list()] == [f"{number:04}" for number in range(1003)]
    for name in ("0001/metadata.jsonl", "a/b/c/d.png", "top.json"):
        server.put("many", f"some prefix/ü/{name}", b"x")
    assert sorted(found.name for found in store.list_folders()) == sorted(found.name for found in store.list())


def test_large_objects_come_in_pieces(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dglaunch.storage.store.PIECE", 1000)
    store = store_in(server, "large")
    data = bytes(range(256)) * 30
    store.put("table", data)
    server.faults.share = 0.2
    assert store.get("table", MOST) == data
    with pytest.raises(StorageError, match="larger than 100 bytes"):
        store.get("table", 100)
    server.faults.share = 0.0
    pieces = store.pieces(store.look_at("table"), MOST)
    next(pieces)
    store.put("table", b"other" * 2000)
    with pytest.raises(StorageError, match="replaced while it was read"):
        list(pieces)


def test_a_large_file_goes_in_parts_each_of_which_may_fail(
    server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("dglaunch.storage.store.MOST_AT_ONCE", 1 << 10)
    (tmp_path / "large").write_bytes(data := bytes(range(256)) * (6 << 12))
    server.faults.share = 0.2
    there = store_in(server, "in-parts")
    there.put_file("large", tmp_path / "large")
    assert any(method == "POST" for method, _ in server.requests) and there.get("large", MOST) == data
    assert there.part("large", 300, 5) == data[300:305]


def test_throttling_passes(server: S3Server) -> None:
    store = store_in(server, "throttled")
    server.faults.throttled_until = time.monotonic() + 0.3
    store.put("a", b"abc")
    assert store.retries.count


def test_a_store_that_never_answers_ends_with_one_sentence(server: S3Server) -> None:
    store = store_in(server, "never", patience=0.1)
    server.faults.throttled_until = time.monotonic() + 60
    with pytest.raises(StorageError, match=r"throttling or overloaded \(503 SlowDown\); asked \d+ times within 0 s"):
        store.put("a", b"abc")


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("AccessDenied", "these credentials may not do that there"),
        ("InvalidAccessKeyId", "the credentials are not known there"),
        ("RequestTimeTooSkewed", "this machine's clock is wrong"),
        ("ExpiredToken", "the credentials have expired"),
        ("SomethingElse", "403 SomethingElse"),
    ],
)
def test_refusals_say_what_to_do_and_show_no_key(server: S3Server, code: str, sentence: str) -> None:
    store = store_in(server, "refusing", patience=0.1)
    server.faults.refuse = code
    with pytest.raises(StorageError, match=sentence) as refused:
        store.put("a", b"abc")
    for secret in (SECRET, ACCESS_KEY, TOKEN):
        assert secret not in str(refused.value) and secret not in repr(refused.value)


def test_a_bucket_that_is_not_there(server: S3Server) -> None:
    with pytest.raises(UserError, match=r"^s3://nowhere/x cannot be written: there is no such bucket; make it"):
        Store(Address("s3://nowhere/x")).check_writable("probe", b"")


def test_a_bucket_is_tried_and_left_as_it_was(server: S3Server) -> None:
    store = store_in(server, "tried")
    store.check_writable("probe", b"x")
    assert not server.objects("tried")


def test_nobody_answers(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"nothing answers there|the connection broke"):
        Store(Address("s3://nowhere/x"), Retries(0.1)).put("a", b"")


def test_where_nobody_answers_says_what_to_look_at_and_that_it_is_tried(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(retrying, "SLOW_S", 0.0)
    said: list[str] = []

    def told(error: StorageError) -> None:
        said.append(str(error))
        store.retries.given_up.set()

    store = Store(Address("s3://nowhere/x"), Retries(60.0, slow=told))
    with pytest.raises(UserError) as refused:
        store.check_writable("probe", b"")
    assert "look at the network, and at the endpoint and region: of S3 AWS_ENDPOINT_URL" in str(refused.value)
    assert len(said) == 1 and said[0] in str(refused.value)


def test_a_profile_of_aws(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    file = tmp_path / "credentials"
    file.write_text(f"[mine]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    store = store_in(server, "profile")
    store.put("a", b"abc")
    assert server.objects("profile") == {"some prefix/ü/a": 3}
    monkeypatch.setenv("AWS_PROFILE", "nobodys")
    with pytest.raises(StorageError, match="no credentials were found"):
        Store(Address("s3://profile")).put("a", b"")
