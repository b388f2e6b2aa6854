"""`dglaunch gallery OUT --serve`: a page and its pictures over HTTP, for who has the address.

Served are the page, which is made anew when a ledger has changed, and the pictures that it shows, and nothing else: no
ledger, no other file of the folder, no link. The address holds a random token; without it there is nothing. Only GET and
HEAD are answered, and nothing is written but the page, into a temporary file without a name.
"""

import hmac
import os
import secrets
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from dglaunch.data.task import Record
from dglaunch.errors import DglaunchError
from dglaunch.output import shards
from dglaunch.output.images import StoredImage
from dglaunch.output.ledger import FAILURES, RUN, OutputFolder
from dglaunch.output.ownership import path_inside
from dglaunch.output.shards import Place, shard_of
from dglaunch.output.sorted_lines import SortedLines

TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
}
"""What a browser shows of what dglaunch writes and copies."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Of every answer."""
SHUT = "default-src 'none'; frame-ancestors 'none'"
"""The policy of what is no page; the page brings its own."""
PIECE = 1 << 18
IDLE_S = 30.0
"""After which a connection that says nothing is closed."""
MOST_CONNECTIONS = 100


@dataclass(slots=True)
class Page:
    """The page of one or several folders, as it was when their ledgers were last looked at.

    Args:
        folders: the results.
        render: makes the page, in pieces.
    """

    folders: Sequence[Path]
    render: Callable[[], Iterator[str]]
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seen: list[list[tuple[str, int, int]]] = field(default_factory=list)
    _file: IO[bytes] | None = None
    _pictures: list[dict[str, str]] = field(default_factory=list)
    """The names of the pictures of each folder, and of each the shard that it is in; empty: it is a file of its own."""

    def file(self) -> int:
        """Return a descriptor of the page, which the caller closes.

        Raises:
            DglaunchError: a ledger cannot be read.
            OSError: the folder is not there any more, or there is no room for the page.
        """
        with self._lock:
            seen = [_ledgers(folder) for folder in self.folders]
            if self._file is None or seen != self._seen:
                pictures = [_pictures(folder) for folder in self.folders]
                file = tempfile.TemporaryFile()  # noqa: SIM115  # it stays open as long as it is the page
                for piece in self.render():
                    file.write(piece.encode("utf-8", "replace"))
                file.flush()
                self._file, self._seen, self._pictures = file, seen, pictures
            return os.dup(self._file.fileno())

    def picture(self, number: int, name: str) -> StoredImage | None:
        """Return a picture of this name in a folder, if it is on the page."""
        if number >= len(self._pictures) or name not in self._pictures[number]:
            return None
        return StoredImage(self.folders[number], name, self._pictures[number][name])


def _ledgers(folder: Path) -> list[tuple[str, int, int]]:
    """What tells whether a folder has other results by now."""
    opened = OutputFolder(folder)
    paths = [*(ledger.path for ledger in opened.ledgers()), *opened.files(FAILURES), *opened.files(RUN)]
    return [(str(path), (info := path.stat()).st_size, info.st_mtime_ns) for path in paths]


def _pictures(folder: Path) -> dict[str, str]:
    """The pictures that a page of the folder shows, and their shards: results, and copies of an edit's inputs."""
    return {name: shard for line in SortedLines(OutputFolder(folder)) for name, shard in _names_in(line)}


def _names_in(line: Record) -> Iterator[tuple[str, str]]:
    copies = line.get("input_file_names")
    shown = [
        (line.get("file_name"), shard_of(line)),
        *((name, "") for name in (copies if isinstance(copies, list) else ())),
    ]
    for name, shard in shown:
        inside = path_inside(name)
        if inside is not None and Path(inside).suffix.lower() in TYPES and not _is_hidden(inside):
            yield inside, shard


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def open_inside(folder: Path, name: str) -> int:
    """Open a file in a folder, not through a link on the way, and return its descriptor.

    Raises:
        OSError: there is no such regular file.
    """
    *folders, last = name.split("/")
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        found = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise FileNotFoundError(name)
    return found


@contextmanager
def _opened(picture: StoredImage) -> Iterator[tuple[IO[bytes], Place]]:
    """A picture's file, or that of its shard, and where in it the picture is. No link is followed.

    Raises:
        OSError: it is not there.
    """
    if picture.shard:
        with shards.opened(picture.folder, picture.shard, picture.name) as found:
            yield found
        return
    with os.fdopen(open_inside(picture.folder, picture.name), "rb") as file:
        yield file, _all_of(file)


def _all_of(file: IO[bytes]) -> Place:
    return Place(0, os.fstat(file.fileno()).st_size)


class StopServing(Exception):
    """A folder was moved or deleted while it was served."""


class Server(ThreadingHTTPServer):
    """A Server shows a page and its pictures until it is interrupted, or a folder is not there any more.

    Args:
        page: what is shown.
        address: host and port.
        family: of that address.
        tell: takes a sentence for the user.
    """

    daemon_threads = True

    def __init__(
        self, page: Page, address: tuple[str, int], family: socket.AddressFamily, tell: Callable[[str], None]
    ) -> None:
        self.address_family = family
        self.page = page
        self.token = secrets.token_urlsafe(24)
        self.tell = tell
        self._places = [_place(folder) for folder in page.folders]
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without asking the network for this machine's name, as http.server would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def service_actions(self) -> None:
        """Look, twice a second, whether the folders are where they were.

        Raises:
            StopServing: one is not.
        """
        for folder, place in zip(self.page.folders, self._places):
            if _place(folder) != place:
                raise StopServing(str(folder))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless there are too many already."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that went away is no error; what else goes wrong in an answer is told in a sentence."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.tell(f"A request could not be answered ({type(error).__name__}: {error}).")


def _place(folder: Path) -> tuple[int, int] | None:
    """Which folder it is, to the file system; None if there is none."""
    try:
        info = folder.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info.st_dev, info.st_ino


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.headers.get("Content-Length") or self.headers.get("Transfer-Encoding"):
            self.close_connection = True  # what comes with it is not read, and must not be taken for a request
        _, token, *rest = urlsplit(self.path).path.split("/", 2) if self.path.startswith("/") else ("", "")
        if not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            self.send_error(HTTPStatus.NOT_FOUND)
        elif not rest:  # the address without its last slash
            self._head(HTTPStatus.PERMANENT_REDIRECT, {"Location": f"/{self.server.token}/", "Content-Length": "0"})
        elif rest == [""]:
            self._send_page()
        else:
            self._send_picture(unquote(rest[0], errors="surrogateescape"))

    def _send_page(self) -> None:
        try:
            page = self.server.page.file()
        except (DglaunchError, OSError) as error:
            self.server.tell(f"The page cannot be made: {error}")
            return self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
        with os.fdopen(page, "rb") as file:
            self._send(file, _all_of(file), {"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"})

    def _send_picture(self, path: str) -> None:
        page = self.server.page
        number, name = (0, path) if len(page.folders) == 1 else _numbered(path)
        picture = page.picture(number, name)
        if picture is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        with ExitStack() as opened:
            try:
                file, place = opened.enter_context(_opened(picture))
            except OSError:
                return self.send_error(HTTPStatus.NOT_FOUND)
            info = os.fstat(file.fileno())
            mark = f'"{info.st_ino:x}-{place.offset:x}-{place.size:x}-{info.st_mtime_ns:x}"'
            headers = {"ETag": mark, "Cache-Control": "private, no-cache", "Content-Security-Policy": SHUT}
            if self.headers.get("If-None-Match") == mark:
                self._head(HTTPStatus.NOT_MODIFIED, headers)
            else:
                self._send(file, place, headers | {"Content-Type": TYPES[Path(name).suffix.lower()]})

    def _send(self, file: IO[bytes], part: Place, headers: Mapping[str, str]) -> None:
        """Send a part of a file; it is read at places of its own, as several may read the page at a time."""
        self._head(HTTPStatus.OK, {"Content-Length": str(part.size), **headers})
        at, end = part.offset, part.offset + part.size
        while self.command == "GET" and at < end:
            piece = os.pread(file.fileno(), min(PIECE, end - at), at)
            if not piece:  # it became shorter: what was promised cannot be kept
                self.close_connection = True
                return
            self.wfile.write(piece)
            at += len(piece)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in (HEADERS | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say what is wrong in a word; nothing of the request is in it."""
        status = HTTPStatus.METHOD_NOT_ALLOWED if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        body = f"{status.value} {status.phrase}\n".encode()
        headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), "Connection": "close"}
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET, HEAD"
        self._head(status, headers | {"Content-Security-Policy": SHUT})
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "dglaunch"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged: the address has the token in it."""


def _numbered(path: str) -> tuple[int, str]:
    """The folder's number and the name in it, of an address where there are several folders."""
    number, _, name = path.partition("/")
    return (int(number), name) if number in map(str, range(10)) else (0, "")
