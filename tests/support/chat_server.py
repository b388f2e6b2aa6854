"""A real HTTP server on loopback with OpenAI's chat route, which rewrites prompts by a rule.

    with ChatServer() as server:
        ... --rewrite_prompts writer --rewrite_api_base server.address ...
        server.asked["a fox"]         how often this prompt was asked for

A prompt may hold [empty], [long], [refused] or [think].
"""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "writer"


def rewritten(prompt: str, seed: object = None) -> str:
    """What the server makes of a prompt."""
    return f"{prompt}, in the evening light" + ("" if seed is None else f", no. {seed}")


class ChatServer:
    """Counters are read when clients are done."""

    def __init__(self, key: str | None = None) -> None:
        self.key = key
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.fails_after: int | None = None
        """Once so many were answered, the server is broken."""
        self.lock = threading.Lock()

    def __enter__(self) -> "ChatServer":
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        """A client that went away is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ChatServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "us"}]})

    def do_POST(self) -> None:
        state = self.server_state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        prompt = body["messages"][-1]["content"]
        with state.lock:
            state.keys.add(key)
            state.bodies.append(body)
            broken = state.fails_after is not None and state.asked.total() >= state.fails_after
            state.asked[prompt] += not broken
        if state.key is not None and key != state.key:
            return self._error(401, f"Incorrect API key provided: {key}")
        if body["model"] != MODEL:
            return self._error(404, f"The model {body['model']} does not exist")
        if broken:
            return self._error(403, "the quota is used up")
        if "[refused]" in prompt:
            return self._error(400, "not this one")
        self._send(200, _answer(prompt, body.get("seed")))

    def _error(self, status: int, message: str) -> None:
        self._send(status, {"error": {"message": message, "code": status}})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _answer(prompt: str, seed: object) -> dict[str, Any]:
    text = "" if "[empty]" in prompt else f'"{rewritten(prompt, seed)}"\n'
    if "[think]" in prompt:
        text = f"<think>hm, {prompt}</think>\n{text}"
    reason = "length" if "[long]" in prompt else "stop"
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
