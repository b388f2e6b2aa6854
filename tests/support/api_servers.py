"""A real HTTP server on loopback that speaks the OpenAI and the Google image APIs, with trouble on request.

    with ApiServer() as server:
        ... OPENAI_BASE_URL=server.openai, or --api_base server.google ...
        server.paid["a red circle"]       answers with a whole image that a client was still there to take

    PYTHONPATH=tests python -m support.api_servers --port 8000 --style sglang      the same as a program (docs/apis.md)

What is painted depends on the prompt and on the bytes and the order of the input images. With a `style` it is one of the
servers that people run themselves (own_servers.py): no key, and what is painted follows from all that the request says. A
prompt may hold markers; each strikes the first time that the prompt is asked for, `[always ...]` every time:

    [429] [500] [timeout] [drop] [truncated] [text] [refused]
    [drip] [endless] [bomb]     a body that comes byte by byte, has no end, or is small until it is unpacked
    [pixels]                    a PNG that says that it is 20,000 x 20,000
    [away]                      the request is sent on to `away`

Batch jobs and their files are api_batches.py's (`server.batches`). The markers of api_answers.py: [draft], [lines], [data url], [one only], [surplus], [limit 0], ...

`GET /files/HEX` is an image, `/drip` and `/endless` are bodies as above, `/head` is a head that comes byte by byte, and
`/to/ADDRESS` leads to another address. `POST /token` gives out credentials of Google Cloud.

api_bench.py measures throughput against it.
"""

import argparse
import base64
import contextlib
import gzip
import hashlib
import json
import re
import select
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from support.api_answers import REPLIES, TWISTS, encoded, painted
from support.api_batches import Batches
from support.own_servers import STYLES, colours, problem_with

KEY = "sk-loopback-0123456789abcdefghij"
KEYS = {"OPENAI_API_KEY": KEY, "GEMINI_API_KEY": KEY, "NO_PROXY": "127.0.0.1"}
BODIES = ("429", "500", "timeout", "drop", "truncated", "text", "refused", "drip", "endless", "bomb", "pixels", "away")
MARKER = re.compile(rf"\[(always )?({'|'.join([*BODIES, *TWISTS, *REPLIES])})\]")
TOKEN = "ya29.loopback"
"""Of Google Cloud, in place of a key."""
HANG_S = 30.0
RETRY_AFTER_S = 0.2
BOMB = gzip.compress(b" " * (8 << 20), 1)
"""Small until it is unpacked."""


def colour_of(prompt: str, images: Sequence[bytes] = ()) -> tuple[int, int, int]:
    """What the server paints for a prompt and its input images, so that a mix-up shows."""
    parts = [prompt.encode(), *images]
    red, green, blue = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()[:3]
    return red, green, blue


def with_size(png: bytes, width: int, height: int) -> bytes:
    """A PNG whose header says another size, with the right checksum."""
    header = b"IHDR" + struct.pack(">II", width, height) + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4) + png[33:]


class ApiServer:
    """Settings may be changed while it runs; counters are read when clients are done."""

    def __init__(
        self, latency: float = 0.0, style: str | None = None, models: tuple[str, ...] = ("qwen-image",), port: int = 0
    ) -> None:
        self.latency = latency
        """Seconds from the arrival of a request to its answer."""
        self.style = STYLES[style] if style is not None else None
        """Of a server of one's own (own_servers.py)."""
        self.port = port
        """0: any that is free."""
        self.models = models
        """What it has, with a style; else any model is served."""
        self.key: str | None = KEY if style is None else None
        """None: no key is needed."""
        self.keys: list[str | None] = []
        """What came as a key with each request for images."""
        self.on_request: Callable[[str], None] | None = None
        """Called with the path of each request for images."""
        self.dies_after: int | None = None
        """Once so many images are paid, every connection is dropped."""
        self.most = 10_000
        """Requests at a time beyond which the answer is 429."""
        self.deny: int | None = None
        """Status of every answer to a request for images, though the key is right."""
        self.hold_after: int | None = None
        """Once so many images are paid, further requests wait until `release`."""
        self.usage: dict[str, Any] | None = {"input_tokens": 10, "output_tokens": 100, "total_tokens": 110}
        self.as_address = False
        """Answer with the addresses of images instead of base64."""
        self.address: str | None = None
        """Answer with this address instead of an image's."""
        self.said = f"Your request was rejected by the safety system. Key: {self.key}"
        """What it says of a request marked [refused]; some servers repeat what they were sent, the key included."""
        self.raw: dict[str, bytes] = {}
        """By prompt: the body of the answer, as it is."""
        self.away = ""
        """Where a request marked [away] is sent on to."""
        self.stored: dict[str, tuple[bytes, str]] = {}
        """By name: images that were answered with an address, and their media type."""
        self.got: Counter[str] = Counter()
        """GET requests by path."""
        self.release = threading.Event()
        self.asked: Counter[str] = Counter()
        self.asked_at: dict[str, list[float]] = {}
        self.paid: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.num_requests = 0
        self.active = 0
        self.highest = 0
        self.lock = threading.Lock()

    def __enter__(self) -> "ApiServer":
        handler = type("Handler", (_Handler,), {"api": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.google = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.openai = f"{self.google}/v1"
        self.batches = Batches(self.google, self.key)
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.batches.closed.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that went away is no error here."""


class _Gone(Exception):
    """The client does not wait any more."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: ApiServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))  # Google's SDK sends --api_extra with a GET, too
        with self.api.lock:
            self.api.got[self.path] += 1
        if self.path.startswith("/to/"):
            return self._send(302, b"", "text/plain", {"Location": unquote(self.path.removeprefix("/to/"))})
        if self.path in ("/drip", "/endless", "/head"):
            with contextlib.suppress(_Gone):
                self._trickle(self.path.strip("/"))
            self.close_connection = True
            return
        if self.path.startswith("/files/"):
            return self._send(200, painted(tuple(bytes.fromhex(self.path.split("/")[2]))), "image/png")  # type: ignore[arg-type]
        if self._is_dead:
            self.close_connection = True
            return
        if self.path.startswith("/v1/images/") and self.path.endswith("/content"):
            return self._send(200, *self.api.stored[self.path.split("/")[3]])
        if not self._key_is_right():
            return self._wrong_key()
        if self.api.batches.handles(self.path):
            return self.api.batches.handle(self, "GET")
        if self.path.split("?")[0] in ("/v1/models", "/v1beta/models"):
            return self._send_json(200, self._listed())
        self._send_json(200, {"id": "model", "object": "model", "created": 0, "owned_by": "us", "name": "models/model"})

    def _listed(self) -> dict[str, Any]:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "us"} for name in self.api.models]
        return {"object": "list", "data": models, "models": [{"name": f"models/{name}"} for name in self.api.models]}

    @property
    def _is_dead(self) -> bool:
        return self.api.dies_after is not None and self.api.paid.total() >= self.api.dies_after

    def do_DELETE(self) -> None:
        self.api.batches.handle(self, "DELETE")

    def do_POST(self) -> None:
        self.arrived = time.monotonic()
        if self.path == "/token":
            self.rfile.read(int(self.headers["Content-Length"]))
            return self._send_json(200, {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 3600})
        if self.api.batches.handles(self.path) and (self._key_is_right() or "X-Goog-Upload-Offset" in self.headers):
            return self.api.batches.handle(self, "POST")
        body = self._body()
        if self._is_dead:
            self.close_connection = True
            return
        if not self._key_is_right():
            return self._wrong_key()
        api = self.api
        with api.lock:
            api.num_requests += 1
            api.bodies.append(body)
            api.keys.append(self._key())
            if api.on_request is not None:
                api.on_request(self.path)
            prompt = body["prompt"]
            api.asked[prompt] += 1
            api.asked_at.setdefault(prompt, []).append(self.arrived)
            first = api.asked[prompt] == 1
        faults = [kind for always, kind in MARKER.findall(prompt) if always or first or kind == "refused"]
        try:
            with self._counted() as too_many:
                if not too_many and "timeout" not in faults:
                    self._work()
            self._answer(body, "429" if too_many else str(api.deny) if api.deny else faults[0] if faults else "")
        except _Gone:
            self.close_connection = True

    @contextlib.contextmanager
    def _counted(self) -> Iterator[bool]:
        """One of the requests under way, until its answer is about to be sent."""
        api = self.api
        with api.lock:
            api.active += 1
            api.highest = max(api.highest, api.active)
            too_many = api.active > api.most
        try:
            yield too_many
        finally:
            with api.lock:
                api.active -= 1

    def _work(self) -> None:
        api = self.api
        time.sleep(max(self.arrived + api.latency - time.monotonic(), 0.0))
        if api.hold_after is not None and api.paid.total() >= api.hold_after:
            while not api.release.wait(0.02):
                self._look()
            time.sleep(0.05)
            self._look()

    def _trickle(self, kind: str) -> None:
        """A body that promises much and comes in drops, or as fast as it can."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(1 << 40))
        if kind != "head":
            self.end_headers()
        else:
            self.flush_headers()
        until = time.monotonic() + HANG_S
        with contextlib.suppress(OSError):
            while time.monotonic() < until and not self.api.release.is_set():
                self.wfile.write(b" " * (1 << 16) if kind == "endless" else b" ")
                if kind != "endless":
                    time.sleep(0.02)
        raise _Gone

    def _look(self) -> None:
        if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
            raise _Gone

    def _answer(self, body: dict[str, Any], fault: str) -> None:
        google = self._is_google
        if fault in REPLIES:
            return self._send(*REPLIES[fault])
        if body["prompt"] in self.api.raw:
            return self._send(200, self.api.raw[body["prompt"]], "application/json")
        if fault == "timeout":
            until = time.monotonic() + HANG_S
            while time.monotonic() < until:
                self._look()
                time.sleep(0.01)
        elif fault == "drop":
            raise _Gone
        elif fault in ("drip", "endless"):
            self._trickle(fault)
        elif fault == "bomb":
            self._send(200, BOMB, "application/json", {"Content-Encoding": "gzip"})
        elif fault == "away":
            self._send(307, b"", "text/plain", {"Location": self.api.away})
        elif fault == "text":
            self._send(200, b"<html>a proxy's page</html>", "text/html")
        elif fault == "refused" and google:
            self._send_json(
                200,
                {
                    "promptFeedback": {
                        "blockReason": "PROHIBITED_CONTENT",
                        "blockReasonMessage": f"not this. {self.api.said}",
                    }
                },
            )
        elif fault == "refused":
            self._send_error(400, self.api.said, "moderation_blocked")
        elif fault.isdigit():
            status = int(fault)
            headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 429 else {}
            self._send_error(status, f"trouble {status}", "x", headers)
        elif self.api.style is not None:
            self._answer_of_own(body)
        else:
            colour = colour_of(body["prompt"], body["images"])
            images = [painted(colour)] * body["n"]
            if fault == "truncated":
                images[-1] = images[-1][:-30]
            if fault == "pixels":
                images = [with_size(image, 20_000, 20_000) for image in images]
            self._look()
            with self.api.lock:
                self.api.paid[body["prompt"]] += body["n"] - (fault == "truncated")
            answer = self._google(images) if google else self._openai(images, colour)
            if fault in TWISTS:
                TWISTS[fault](answer)
            self._send_json(200, answer)

    def _answer_of_own(self, body: dict[str, Any]) -> None:
        """The answer of a server that somebody runs himself."""
        api, sent, style = self.api, body["raw"], self.api.style
        assert style is not None
        problem = problem_with(style, sent, api.models)
        if problem is not None:
            return self._send_json(*problem)
        width, _, height = str(sent.get("size") or style.size).partition("x")
        images = [painted(colour, (int(width), int(height))) for colour in colours(style, sent, body["images"])]
        addresses = style.address if sent.get("response_format", "url") == "url" else ""
        data = [self._of_own(image, addresses) for image in images]
        if style.repeats_prompt:
            data = [entry | {"revised_prompt": sent["prompt"]} for entry in data]
        self._look()
        with api.lock:
            api.paid[body["prompt"]] += len(images)
        self._send_json(200, {"created": 1, "data": data})

    def _of_own(self, image: bytes, address: str) -> dict[str, Any]:
        if not address:
            return {"b64_json": encoded(image)}
        name = hashlib.sha256(image).hexdigest()
        self.api.stored[name] = image, "image/png"
        return {"url": f"{self.api.google if address == 'absolute' else ''}/v1/images/{name}/content"}

    def _openai(self, images: list[bytes], colour: tuple[int, int, int]) -> dict[str, Any]:
        usage = {"usage": self.api.usage} if self.api.usage else {}
        if self.api.as_address or self.api.address is not None:
            address = self.api.address or f"{self.api.google}/files/{bytes(colour).hex()}"
            data = [{"url": address} for _ in images]
        else:
            data = [{"b64_json": encoded(image)} for image in images]
        return {"created": 1, "data": data} | usage

    def _google(self, images: list[bytes]) -> dict[str, Any]:
        data = [encoded(image) for image in images]
        if self.path.split("?")[0].endswith(":predict"):
            return {"predictions": [{"bytesBase64Encoded": text, "mimeType": "image/png"} for text in data]}
        parts = [{"inlineData": {"mimeType": "image/png", "data": text}} for text in data]
        usage = {"promptTokenCount": 10, "candidatesTokenCount": 100, "totalTokenCount": 110}
        return {
            "candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": "STOP"}],
            "usageMetadata": usage,
        }

    # -- HTTP -----------------------------------------------------------------------------------------------------

    def _body(self) -> dict[str, Any]:
        """What was asked for, the same for each API: prompt, n, images, and the request as it came."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"].startswith("multipart/"):
            texts, images, masks, kinds = _form(self.headers["Content-Type"].partition("boundary=")[2].encode(), raw)
            return {
                "prompt": texts["prompt"], "n": int(texts["n"]), "images": images, "kinds": kinds, "raw": texts,
                "mask": masks[0] if masks else None,
            }  # fmt: skip
        sent = json.loads(raw)
        if "contents" in sent:
            parts = [part for content in sent["contents"] for part in content["parts"]]
            inline = [p["inlineData"] for p in parts if "inlineData" in p]
            images = [base64.urlsafe_b64decode(part["data"]) for part in inline]
            kinds = [part.get("mimeType") or part["mime_type"] for part in inline]  # the protocol takes both spellings
            prompt = next(p["text"] for p in parts if "text" in p)
            return {"prompt": prompt, "n": 1, "images": images, "kinds": kinds, "raw": sent}
        if "instances" in sent:
            return {
                "prompt": sent["instances"][0]["prompt"],
                "n": sent["parameters"]["sampleCount"],
                "images": [],
                "raw": sent,
            }
        images = [_of_data_url(image["image_url"]) for image in sent.get("images", ())]
        mask = _of_data_url(sent["mask"]["image_url"])[0] if "mask" in sent else None
        return {
            "prompt": sent["prompt"], "n": sent.get("n", 1), "images": [data for data, _ in images], "raw": sent, "mask": mask,
            "kinds": [kind for _, kind in images],
        }  # fmt: skip

    @property
    def _is_google(self) -> bool:
        return "x-goog-api-key" in self.headers or ":" in self.path or self.path.startswith("/v1beta")

    def _key(self) -> str | None:
        given = self.headers.get("x-goog-api-key") or self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given is not None else None

    def _key_is_right(self) -> bool:
        return self.api.key is None or self._key() in (self.api.key, TOKEN)

    def _wrong_key(self) -> None:
        sent = self.headers.get("Authorization", "")
        if self._is_google:
            details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}]
            error = {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT", "details": details}
            return self._send_json(400, {"error": error})
        self._send_error(401, f"Incorrect API key provided: {sent[7:17]}*******{sent[-4:]}", "invalid_api_key")

    def _send_error(self, status: int, message: str, code: str, headers: dict[str, str] | None = None) -> None:
        error = {
            "message": message,
            "code": status if self._is_google else code,
            "type": "x",
            "status": "TROUBLE",
        }
        self._send_json(status, {"error": error}, headers)

    def _send_json(self, status: int, answer: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(answer).encode(), "application/json", headers)

    def _send(self, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def _of_data_url(address: str) -> tuple[bytes, str]:
    """The bytes of an image in a JSON body, and its media type."""
    kind, _, text = address.removeprefix("data:").partition(";base64,")
    return base64.b64decode(text, validate=True), kind


def _form(boundary: bytes, raw: bytes) -> tuple[dict[str, str], list[bytes], list[bytes], list[str]]:
    """A multipart body: its texts by name; its files in their order, the masks among them, and their media types."""
    texts: dict[str, str] = {}
    files: list[bytes] = []
    masks: list[bytes] = []
    kinds: list[str] = []
    for part in raw.split(b"--" + boundary)[1:-1]:
        head, _, content = part[2:-2].partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0].decode()
        if b"filename=" not in head:
            texts[name] = content.decode()
        elif name == "mask":
            masks.append(content)
        else:
            files.append(content)
            kinds.append(head.lower().partition(b"content-type:")[2].split(b"\r\n")[0].strip().decode())
    return texts, files, masks, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument(
        "--style", choices=list(STYLES), help="a server that people run themselves; default: the vendors'"
    )
    parser.add_argument("--model", action="append", help="a model that it has, with --style (repeat it for more)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until an answer")
    words = parser.parse_args()
    models = tuple(words.model or ("qwen-image",))
    with ApiServer(words.latency, words.style, models, words.port) as server:
        key = f"the key is {server.key}" if server.key else f"no key is needed, it has {', '.join(models)}"
        print(
            f"--api_base {server.openai} (openai), --api_base {server.google} (google_genai); {key}. Ctrl-C ends it.",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        for prompt, times in sorted(server.asked.items()):
            print(f"{times:6} asked, {server.paid[prompt]:6} images: {prompt[:80]!r}")


if __name__ == "__main__":
    main()
