"""Servers that are not friendly: an answer costs its own item at the most, never the run, this machine or its network.

Layers, cheapest first: addresses and texts, whole runs.
"""

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dglaunch.backends.api import answers, downloads
from dglaunch.backends.api.answers import RequestError, redact
from dglaunch.cli.main import main
from dglaunch.storage import public_web
from support.api_servers import KEY, ApiServer, colour_of, painted, with_size
from support.remote_runs import MODELS, assert_no_key, assert_right_images, rows_of, words
from support.results import ledger, run_json

OWN = ("127.0.0.1", 1)


@pytest.mark.parametrize(
    "place",
    [
        "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.9", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1", "2002:7f00:1::", "198.18.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(place: str) -> None:
    with pytest.raises(
        public_web.Refused, match=f"leads to name.example, port 80, which is {place}: no public address"
    ):
        public_web.refuse_private(("name.example", 80), ["93.184.216.34", place], [OWN])
    public_web.refuse_private(("name.example", 80), [place], [("name.example", 80)])  # the user's own choice


def test_public_addresses_are_not() -> None:
    public_web.refuse_private(("name.example", 80), ["93.184.216.34", "2606:2800:220:1::1"], [OWN])


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "//host/x", "http:///x"])
def test_what_is_no_address_of_http(address: str) -> None:
    with pytest.raises(RequestError, match="no http or https address"):
        downloads.download(address, 1, OWN)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost", "127.1"])
def test_other_ways_to_write_this_machine(server: ApiServer, host: str) -> None:
    port = server.google.rpartition(":")[2]
    with pytest.raises(RequestError, match="no public address"):
        downloads.download(f"http://{host}:{port}/files/010203", 5, ("127.0.0.1", int(port)))
    assert not server.got


def test_a_head_that_comes_byte_by_byte_has_its_time_too(server: ApiServer) -> None:
    own = public_web.origin_of("http", "127.0.0.1", int(server.google.rpartition(":")[2]))
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"not within 0\.3 s"):
        downloads.download(f"{server.google}/head", 0.3, own)
    assert time.monotonic() - start < 2


def test_a_name_that_leads_to_this_machine_is_seen_when_the_connection_is_made(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(server.google.rpartition(":")[2])
    look_up = socket.getaddrinfo

    def looked_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        return look_up("127.0.0.1" if host == "rebound.example" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    with pytest.raises(RequestError, match=r"rebound.example, port \d+, which is 127.0.0.1"):
        downloads.download(f"http://rebound.example:{port}/files/010203", 5, OWN)
    assert not server.got
    monkeypatch.setenv("http_proxy", server.google)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(RequestError, match=r"rebound.example, port \d+, which is 127.0.0.1"):
        downloads.download(f"http://rebound.example:{port}/files/010203", 5, OWN)
    assert not server.got


def test_the_users_proxy_may_be_anywhere(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.google)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)
    with pytest.raises(RequestError, match="cannot be fetched"):  # it is asked, and knows no such path
        downloads.download("http://93.184.216.34/files/010203", 5, OWN)
    assert "http://93.184.216.34/files/010203" in server.got


def test_the_time_of_a_download_is_that_of_all_of_it(server: ApiServer) -> None:
    own = public_web.origin_of("http", "127.0.0.1", int(server.google.rpartition(":")[2]))
    start = time.monotonic()
    with pytest.raises(RequestError, match=r"not within 0.3 s \(--timeout\)") as late:
        downloads.download(f"{server.google}/drip", 0.3, own)
    assert late.value.kind == "again" and time.monotonic() - start < 2


def test_a_download_has_an_end(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MOST_BYTES", 1 << 18)
    own = public_web.origin_of("http", "127.0.0.1", int(server.google.rpartition(":")[2]))
    with pytest.raises(RequestError, match="larger than 262,144 bytes") as refused:
        downloads.download(f"{server.google}/endless", 10, own)
    assert refused.value.kind == "refused"


@pytest.mark.parametrize("output_format", ["png", "jpg"])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(output_format: str) -> None:
    with pytest.raises(RequestError, match="pixels") as refused:
        answers.picture(with_size(painted((1, 2, 3)), 20_000, 20_000), output_format)
    assert refused.value.kind == "refused"
    assert answers.picture(painted((1, 2, 3)), output_format).width == 32


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {KEY}!", "key [key]!"),
        (f"key {KEY[:11]}****{KEY[-4:]}", "key [key]"),
        (f"{KEY[:3]}...{KEY[-4:]} is wrong", "[key] is wrong"),
        (f"{KEY[:5]}**********{KEY[-4:]}", "[key]"),
        (f"it ends in ...{KEY[-4:]}", "it ends in [key]"),
        (f"http://host/?key={KEY}&a=1", "http://host/?key=[key]&a=1"),
        ("sk-other, a sketch", "sk-other, a sketch"),
    ],
)
def test_no_part_of_the_key_stays_in_a_text(text: str, clean: str) -> None:
    assert redact(text, KEY) == clean
    assert redact(text, "") == text


@pytest.mark.parametrize("text", ["sk-" * 300_000, "*" * 900_000, ("sk-" + "a" * 90 + "*") * 9000, KEY * 30_000])
def test_a_text_without_end_takes_no_time(text: str) -> None:
    start = time.monotonic()
    assert KEY[:8] not in redact(text, KEY) and time.monotonic() - start < 1


def test_a_key_that_is_short_or_has_signs_of_patterns() -> None:
    assert redact("a+b? and c", "a+b?") == "[key] and c"


# -- whole runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(downloads, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(downloads, "PAUSE_S", 0.0)


@pytest.mark.parametrize("backend", MODELS)
def test_each_costs_its_item_and_not_the_run(
    small_limits: None, server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    good = ["one", "two", "three [drip]"]
    bad = {
        "a [always drip]": "no whole answer within 1.5 s (tried 2 times)",
        "b [always endless]": "the answer is larger than 1,048,576 bytes",
        "c [always bomb]": "the answer is larger than 1,048,576 bytes",
        "d [always pixels]": "20000x20000, more than",
    }
    out, flags = tmp_path / "out", ["--timeout", "1.5", "--api_max_retries", "1", "--num_processes", "4"]
    start = time.monotonic()
    assert main(words(server, backend, rows_of(tmp_path, [*good, *bad]), out, *flags)) == 3
    assert time.monotonic() - start < 10
    assert_right_images(out, good)
    failures = {line["prompt"]: line["error"] for line in ledger(out, "failures.jsonl")}
    assert failures.keys() == bad.keys()
    for prompt, said in bad.items():
        assert said in failures[prompt], failures
    assert [server.asked[prompt] for prompt in bad] == [2, 1, 1, 1]  # what would come again is not paid for again


SHAPES: list[Any] = [
    None, 1, "text", [], {}, {"data": None}, {"data": 1}, {"data": "x"}, {"data": [None]}, {"data": [1, "x"]},
    {"data": [{"b64_json": 5}]}, {"data": [{"b64_json": "%%%"}]}, {"data": [{"b64_json": ""}]}, {"data": [{"url": 5}]},
    {"data": [{"url": "http://[::1"}]}, {"data": [{"url": "http://x:99999/"}]}, {"data": {"0": 1}},
    {"data": [], "usage": "x"}, {"data": [], "usage": [1]}, {"data": [], "usage": {"a": {"b": "c"}}},
    {"candidates": 1}, {"candidates": [1]}, {"candidates": [{"content": 1}]}, {"candidates": [{"content": {"parts": 1}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"data": "%%%"}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"data": "AAAA", "mimeType": "image/png"}}]}}]},
    {"candidates": [{"finishReason": "NO_SUCH"}]}, {"promptFeedback": {"blockReason": "NO_SUCH"}},
    {"promptFeedback": 7}, {"usageMetadata": "x"},
]  # fmt: skip
BODIES = [json.dumps(shape).encode() for shape in SHAPES] + [b"", b"\0", b"{", b"[" * 100_000, b'{"a":' * 50_000]


@pytest.mark.parametrize("backend", MODELS)
def test_answers_of_any_shape_cost_their_items(
    small_limits: None, server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str
) -> None:
    server.raw = {f"shape {n}": body for n, body in enumerate(BODIES)}
    out = tmp_path / "out"
    flags = ["--api_max_retries", "0", "--num_processes", "4"]
    assert main(words(server, backend, rows_of(tmp_path, [*server.raw, "good"]), out, *flags)) == 3
    assert_right_images(out, ["good"])
    assert {line["prompt"] for line in ledger(out, "failures.jsonl")} == server.raw.keys()
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_whole_in_a_strange_answer_is_kept(server: ApiServer, tmp_path: Path) -> None:
    whole = {"b64_json": base64.b64encode(painted(colour_of("a"))).decode()}
    server.raw = {"a": json.dumps({"data": [7, whole, {"b64_json": 1}], "usage": "much"}).encode()}
    out, flags = tmp_path / "out", ["--num_images_per_prompt", "3", "--api_max_retries", "0"]
    assert main(words(server, "openai", rows_of(tmp_path, ["a"]), out, *flags)) == 3
    assert [line["file_name"] for line in ledger(out)] == ["000000_01.png"]
    assert [line["error"] for line in ledger(out, "failures.jsonl")] == ["an empty image came"] * 2


@pytest.fixture
def other() -> Iterator[ApiServer]:
    """Something else on this machine's network."""
    with ApiServer() as running:
        yield running


@pytest.mark.parametrize("by_redirect", [False, True])
def test_an_answer_does_not_lead_into_the_network(
    small_limits: None, server: ApiServer, other: ApiServer, tmp_path: Path, by_redirect: bool
) -> None:
    inside = f"{other.google}/files/010203"
    server.address = f"{server.google}/to/{quote(inside, safe='')}" if by_redirect else inside
    out = tmp_path / "out"
    assert main(words(server, "openai", rows_of(tmp_path, ["a"]), out)) == 3
    assert "no public address" in ledger(out, "failures.jsonl")[0]["error"]
    assert not other.got and server.asked["a"] == 1


def test_a_redirect_to_no_http_is_refused(small_limits: None, server: ApiServer, tmp_path: Path) -> None:
    server.address = f"{server.google}/to/{quote('ftp://127.0.0.1/x', safe='')}"
    assert main(words(server, "openai", rows_of(tmp_path, ["a"]), tmp_path / "out")) == 3
    assert "no http or https address" in ledger(tmp_path / "out", "failures.jsonl")[0]["error"]


def test_redirects_at_the_api_itself_are_followed(small_limits: None, server: ApiServer, tmp_path: Path) -> None:
    server.address = f"{server.google}/to/{quote(server.google + '/files/010203', safe='')}"
    assert main(words(server, "openai", rows_of(tmp_path, ["a"]), tmp_path / "out")) == 0


@pytest.mark.parametrize("backend", MODELS)
def test_a_request_is_not_sent_on_to_another_host(
    server: ApiServer, other: ApiServer, tmp_path: Path, backend: str
) -> None:
    server.away = other.openai.replace("127.0.0.1", "localhost")
    out = tmp_path / "out"
    assert main(words(server, backend, rows_of(tmp_path, ["a [always away]", "b"]), out, "--api_max_retries", "0")) == 3
    assert "sends the request on to localhost" in ledger(out, "failures.jsonl")[0]["error"]
    assert other.num_requests == 0 and not other.got


@pytest.mark.parametrize("backend", MODELS)
def test_a_key_in_an_answer_gets_nowhere(
    server: ApiServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.said = f"Not this. You are {KEY}, or {KEY[:3]}...{KEY[-4:]}"
    server.usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2, KEY: 3}
    out = tmp_path / "out"
    assert main(words(server, backend, rows_of(tmp_path, ["a [refused]", "b"]), out)) == 3
    captured = capsys.readouterr()
    assert_no_key(out, captured.out, captured.err)
    said = ledger(out, "failures.jsonl")[0]["error"]
    assert "You are [key], or [key]" in said and KEY[-4:] not in said
    assert run_json(out)["num_failed"] == 1
