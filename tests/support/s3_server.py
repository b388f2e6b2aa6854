"""A real S3 server over HTTP on loopback (moto's), and a proxy before it that fails as the world does.

    with S3Server() as server:
        server.bucket("results")
        server.faults.share = 0.02                     # of requests that fail
        server.faults.throttled_until = time.monotonic() + 60
        run(..., **server.environment)

`server.objects("results")` is what is there, read behind the proxy's back.
"""

import http.client
import logging
import random
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

SECRET = "SECRETsecretSECRETsecretSECRETsecretSECR"
ACCESS_KEY, TOKEN = "AKIATESTTESTTESTTEST", "TOKENtokenTOKENtoken"
WRITES = ("PUT", "POST", "DELETE")
NAMES = {"s3": "http://s3.amazonaws.com/doc/2006-03-01/"}


@dataclass
class Faults:
    """What goes wrong, may be changed at any time."""

    share: float = 0.0
    """Of requests: a third each is answered 500 or 503, cut before it arrives, and cut when it was done."""
    throttled_until: float = 0.0
    """Of time.monotonic(): until then every request is answered 503 SlowDown."""
    refuse: str = ""
    """A code of S3's with which every request is answered 403."""
    delay: float = 0.0
    """Seconds before each request."""
    only: str = ""
    """Only requests in whose path this stands."""
    stops_at: int | None = None
    """How many requests that write something still are answered: after them none is, until `let_go` is set, and it is cut."""
    has_stopped: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)
    dice: random.Random = field(default_factory=lambda: random.Random(7))


class S3Server:
    """The server with its proxy; one of moto's serves all of a process."""

    def __init__(self) -> None:
        self.faults = Faults()
        self._counting = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        """Method and path of each that came."""
        self._proxy = _Proxy(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self._thread = threading.Thread(target=self._proxy.serve_forever, args=(0.02,), daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_address[1]}",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_REGION": "us-east-1",
        }

    def __enter__(self) -> "S3Server":
        moto_port()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._proxy.shutdown()
        self._proxy.server_close()

    def is_stopped(self) -> bool:
        """Whether a request that would write something is one too many; it waits then."""
        faults = self.faults
        if faults.stops_at is None:
            return False
        with self._counting:
            faults.stops_at -= 1
            if faults.stops_at >= 0:
                return False
        faults.has_stopped.set()
        faults.let_go.wait(60)
        return True

    # -- behind the proxy's back ------------------------------------------------------------------------------------------

    def bucket(self, name: str) -> str:
        ask("PUT", f"/{name}")
        return name

    def put(self, bucket: str, name: str, data: bytes) -> None:
        ask("PUT", f"/{bucket}/{quote(name)}", data)

    def get(self, bucket: str, name: str) -> bytes:
        return ask("GET", f"/{bucket}/{quote(name)}")

    def delete(self, bucket: str, name: str) -> None:
        ask("DELETE", f"/{bucket}/{quote(name)}")

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """Names and sizes."""
        found: dict[str, int] = {}
        after = ""
        while True:
            page = ElementTree.fromstring(
                ask("GET", f"/{bucket}?list-type=2&prefix={quote(prefix)}&start-after={quote(after)}")
            )
            entries = page.findall("s3:Contents", NAMES)
            for entry in entries:
                after = entry.findtext("s3:Key", "", NAMES)
                found[after] = int(entry.findtext("s3:Size", "", NAMES))
            if page.findtext("s3:IsTruncated", "", NAMES) != "true":
                return found


def ask(method: str, path: str, body: bytes = b"") -> bytes:
    """One request to moto itself."""
    connection = http.client.HTTPConnection("127.0.0.1", moto_port(), timeout=60)
    authorization = f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request"
    connection.request(method, path, body, {"Authorization": authorization})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    assert answer.status < 300, (answer.status, data[:500])
    return data


_starting = threading.Lock()
_moto: list[object] = []
_port = 0


def moto_port() -> int:
    """Of moto's server, which is started once for this process."""
    global _port
    with _starting:
        if not _moto:
            from moto.server import ThreadedMotoServer

            logging.getLogger("werkzeug").setLevel(logging.ERROR)
            server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
            server.start()
            _moto.append(server)
            _port = server.get_host_and_port()[1]
    return _port


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or a connection that was cut on purpose."""


class _Handler(BaseHTTPRequestHandler):
    server_: S3Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server, faults = self.server_, self.server_.faults
        server.requests.append((self.command, unquote(urlsplit(self.path).path)))
        applies = faults.only in self.path
        if self.command in WRITES and server.is_stopped():
            self.close_connection = True
            self.connection.close()
            return
        if applies and faults.delay:
            time.sleep(faults.delay)
        if applies and faults.refuse:
            self._error(403, faults.refuse)
        elif applies and time.monotonic() < faults.throttled_until:
            self._error(503, "SlowDown")
        elif applies and faults.dice.random() < faults.share:
            self._fail(body)
        else:
            self._forward(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _any

    def _fail(self, body: bytes) -> None:
        way = self.server_.faults.dice.randrange(4)
        if way < 2:
            self._error(500, "InternalError") if way else self._error(503, "SlowDown")
            return
        self.close_connection = True
        if way == 2:
            self._forward(body, cut=True)  # it is done, and nobody hears of it
        self.connection.close()

    def _error(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{TOKEN} {ACCESS_KEY}</Message></Error>".encode()
        self._answer(status, {"Content-Type": "application/xml"}, b"" if self.command == "HEAD" else text)

    def _forward(self, body: bytes, cut: bool = False) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", moto_port(), timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        kept = ("content-type", "etag", "last-modified", "content-range", "content-length")
        found = {name: value for name, value in answer.getheaders() if name.lower() in kept}
        connection.close()
        if cut and data:  # half of it
            self._answer(answer.status, found, data[: len(data) // 2])
        elif not cut:
            self._answer(answer.status, found, data)

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        headers = {name.lower(): value for name, value in headers.items()}
        if self.command != "HEAD":
            headers.setdefault("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
