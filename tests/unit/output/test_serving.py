"""`dglaunch gallery OUT --serve`: what it answers and what it does not. The page in a browser: system/test_compare_browser.py."""

import contextlib
import http.client
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from dglaunch.output import serving
from dglaunch.output.gallery import render
from dglaunch.output.ledger import OutputFolder
from dglaunch.output.serving import Page, Server
from dglaunch.output.sorted_lines import SortedLines
from support.commands import dglaunch, end, start
from support.gallery_folder import line, paint
from support.grid_folder import fill_run
from support.results import write_jsonl


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Served:
    """A folder that is served by a thread of this process."""

    folder: Path
    server: Server
    told: list[str]

    def ask(self, path: str, method: str = "GET", token: str | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=20)
        connection.request(method, f"/{self.server.token if token is None else token}{path}", headers=headers)
        answer = connection.getresponse()
        found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found

    def status(self, path: str, method: str = "GET", token: str | None = None) -> int:
        return self.ask(path, method, token).status


@contextlib.contextmanager
def serving_of(folder: Path) -> Iterator[Served]:
    told: list[str] = []

    def pieces() -> Iterator[str]:
        return render(folder, folder, 0, SortedLines(OutputFolder(folder)), only_inside=True)

    with Server(Page([folder], pieces), ("127.0.0.1", 0), socket.AF_INET, told.append) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        served = Served(folder, server, told)
        served.ask("/")
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A folder with an edit, files of somebody else's, links, and a ledger that names what it should not."""
    above = tmp_path_factory.mktemp("served ünï #1")
    (above / "secret.png").write_bytes(b"secret")
    out = fill_run(above / "out", ["red", "green"])
    paint(out / "inputs" / "000000_0.png", "yellow")
    paint(out / "mine.png", "black")
    paint(out / ".hidden.png", "black")
    (out / "linked.png").symlink_to(above / "secret.png")
    (out / "links").symlink_to(above)
    edit = {
        "input_images": ["a.png"],
        "input_file_names": ["inputs/000000_0.png", "links/secret.png", "../secret.png", ".hidden.png"],
    }
    rows = [line(0, **edit), line(1), line(2, file_name="linked.png"), line(3, file_name="odd %2e ünï.png")]
    paint(out / "odd %2e ünï.png", "blue")
    write_jsonl(out / "metadata.jsonl", rows)
    with serving_of(out) as found:
        yield found


def test_the_page_and_what_it_shows(served: Served) -> None:
    page = served.ask("/")
    assert page.status == 200 and page.headers.get("Content-Type") == "text/html; charset=utf-8"
    assert b"- dglaunch gallery</title>" in page.body and page.headers.get("Cache-Control") == "no-store"
    for name in ("000000.png", "inputs/000000_0.png", "odd%20%252e%20%C3%BCn%C3%AF.png"):
        picture = served.ask(f"/{name}")
        assert picture.status == 200 and picture.headers.get("Content-Type") == "image/png", name
        assert picture.body.startswith(b"\x89PNG"), name


def test_nothing_else_is_there(served: Served) -> None:
    for path in (
        "/metadata.jsonl", "/run.json", "/gallery.html", "/mine.png", "/.hidden.png", "/linked.png", "/links/secret.png",
        "/../secret.png", "/%2e%2e/secret.png", "/..%2fsecret.png", "/inputs/../mine.png", "/inputs/../000000.png", "/inputs", "/inputs/",
        "//000000.png", "/./000000.png", "/000000.png/", "/000000.png%00", "/%00", "/%ff", "/etc/passwd", "//etc/passwd", "/0/000000.png",
    ):  # fmt: skip
        assert served.status(path) == 404, path
    assert served.told == []


def test_without_the_token_there_is_nothing(served: Served) -> None:
    assert len(served.server.token) >= 32
    answers = [
        served.ask(path, token=token)
        for token in ("", "x", served.server.token[:-1], served.server.token + "x", "%C3%BC")
        for path in ("/", "/000000.png", "/nothing")
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(404, b"404 Not Found\n")}
    assert served.ask("").headers.get("Location") == f"/{served.server.token}/"


def test_it_is_read_only(served: Served) -> None:
    head = served.ask("/000000.png", "HEAD")
    size = (served.folder / "000000.png").stat().st_size
    assert (head.status, head.body, head.headers.get("Content-Length")) == (200, b"", str(size))
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"):
        answer = served.ask("/000000.png", method)
        assert (answer.status, answer.headers.get("Allow")) == (405, "GET, HEAD"), method
    assert served.ask("/", "GET", **{"Content-Length": "5"}).status == 200


def test_every_answer_has_the_headers(served: Served) -> None:
    for path, method in (("/", "GET"), ("/000000.png", "GET"), ("/nothing", "GET"), ("", "GET"), ("/", "POST")):
        answer = served.ask(path, method)
        assert (
            answer.headers.get("X-Content-Type-Options") == "nosniff"
            and answer.headers.get("X-Frame-Options") == "DENY"
        )
        assert answer.headers.get("Referrer-Policy") == "no-referrer" and answer.headers.get("Server") == "dglaunch"
        assert answer.headers.get("Cross-Origin-Resource-Policy") == "same-origin"
    assert served.ask("/000000.png").headers.get("Content-Security-Policy") == serving.SHUT


def test_a_picture_is_sent_once(served: Served) -> None:
    mark = served.ask("/000000.png").headers.get("ETag")
    assert mark is not None
    assert served.ask("/000000.png", **{"If-None-Match": mark}).status == 304
    assert served.ask("/000000.png", **{"If-None-Match": '"other"'}).status == 200


def test_what_is_no_request(served: Served) -> None:
    for said in (
        b"\x16\x03\x01\x02 hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET nothing HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", served.server.server_port), timeout=20) as peer:
            peer.sendall(said)
            peer.shutdown(socket.SHUT_WR)
            assert re.search(rb"40[04]|414|405|505", peer.recv(200)), said[:20]
    assert served.status("/") == 200 and served.told == []


def test_new_results_are_on_the_page_when_it_is_loaded_again(tmp_path: Path) -> None:
    out = fill_run(tmp_path / "out", ["red"])
    with serving_of(out) as served:
        assert served.status("/000001.png") == 404
        fill_run(out, ["red", "green"])
        assert b"000001.png" in served.ask("/").body and served.status("/000001.png") == 200
        (out / "metadata.jsonl").chmod(0)
        (out / "metadata.jsonl").unlink()
        (out / "metadata.jsonl").mkdir()
        assert served.status("/") == 503
        assert (
            len(served.told) == 1 and "The page cannot be made" in served.told[0] and "Traceback" not in served.told[0]
        )


def test_a_browser_that_goes_away_is_no_error(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.server.server_port)) as peer:
        peer.sendall(f"GET /{served.server.token}/ HTTP/1.1\r\n\r\n".encode())
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert served.status("/") == 200 and served.told == []


# -- the command --------------------------------------------------------------------------------------------------


def beginning(process: "subprocess.Popen[str]") -> str:
    """What it says until it serves."""
    assert process.stdout is not None
    said = ""
    while "Ctrl-C ends it." not in said:
        text = process.stdout.readline()
        assert text, said
        said += text
    return said


def fetch(address: str) -> bytes:
    found = re.fullmatch(r"http://([^/]+)(/.*)", address)
    assert found
    connection = http.client.HTTPConnection(found[1], timeout=20)
    connection.request("GET", found[2])
    return connection.getresponse().read()


def test_control_c_ends_it_well(tmp_path: Path) -> None:
    out = fill_run(tmp_path / "out", ["red"])
    process = start(["gallery", out, "--serve"])
    said = beginning(process)
    assert b"dglaunch gallery" in fetch(re.findall(r"http://\S+", said)[0])
    assert re.search(r"ssh -N -L (\d+):127\.0\.0\.1:\1 \S+@\S+", said)
    process.send_signal(signal.SIGINT)
    ended = end(process, 20)
    assert ended.code == 0 and "Stopped." in ended.output and "Traceback" not in ended.output
    assert sorted(path.name for path in out.iterdir()) == ["000000.png", "metadata.jsonl", "run.json"], (
        "nothing is written"
    )


def interrupted(server: Server) -> None:
    raise KeyboardInterrupt


def test_what_it_says_of_an_edit_and_of_a_host_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.Server, "serve_forever", interrupted)
    out = fill_run(tmp_path / "out", ["red"], {"input": "edits.csv"})
    ended = dglaunch("gallery", out, "--serve", "--host", "0.0.0.0")
    assert ended.code == 0 and "those of the table are not served" in ended.output
    assert "nothing is encrypted" in ended.output and "ssh" not in ended.output


def test_nothing_is_said_of_input_images_where_no_image_was_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.Server, "serve_forever", interrupted)
    ended = dglaunch("gallery", fill_run(tmp_path / "out", ["red"]), "--serve")
    assert ended.code == 0 and "nput images" not in ended.output


@pytest.mark.parametrize("away", ["moved", "replaced"])
def test_a_folder_that_is_moved_while_it_is_served(tmp_path: Path, away: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = fill_run(tmp_path / "out", ["red"])

    def leave(self: Server) -> None:
        if out.resolve() in self.page.folders and not (tmp_path / "elsewhere").exists():  # not another test's server
            out.rename(tmp_path / "elsewhere")
            if away == "replaced":
                out.symlink_to("/etc")
        look(self)

    look = serving.Server.service_actions
    monkeypatch.setattr(serving.Server, "service_actions", leave)
    ended = dglaunch("gallery", out, "--serve")
    assert ended.code == 2 and "Traceback" not in ended.output
    said = " ".join(ended.output.split())
    assert f"{out} was moved or deleted while it was served, so there is nothing left to show. Start" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--port", "70000"], "a number from 0 (a free one) to 65535"),
        (["--port", "-1"], "a number from 0 (a free one) to 65535"),
        (["--host", "192.0.2.1"], "Nothing can be served at --host 192.0.2.1"),
        (["--host", "no such host"], "Leave both out for a free port"),
        (["--port", "TAKEN"], "Address already in use"),
    ],
)
def test_addresses_that_cannot_be(tmp_path: Path, words: list[str], says: str) -> None:
    out = fill_run(tmp_path / "out", ["red"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = dglaunch("gallery", out, "--serve", *(port if word == "TAKEN" else word for word in words))
    assert ended.code == 2 and says in " ".join(ended.output.split()), ended.output
