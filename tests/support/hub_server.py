"""A real HTTP server on loopback that speaks what huggingface_hub asks of a hub, for models and datasets that are folders.

    with HubServer({"someone/model": folder}) as server:
        with server.in_use(monkeypatch, tmp_path / "cache"): ...     huggingface_hub in this process asks it
        server.fetched                                               the files of which bodies were sent, with their bytes

`server.gated` are the models of which it gives nothing, `server.down` answers 503 to everything, and `server.damage` says
what becomes of a file's bytes on their way.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = re.compile(r"/(datasets/)?(?P<model>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
TREE = re.compile(r"/api/models/(?P<model>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")
LIST = re.compile(r"/api/(models|datasets)/(?P<model>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")


class HubServer:
    """Settings may be changed while it runs."""

    def __init__(self, models: Mapping[str, Path]) -> None:
        self.models = dict(models)
        self.gated: set[str] = set()
        self.down = False
        self.damage: dict[str, Callable[[bytes], bytes]] = {}
        self.fetched: dict[str, int] = {}
        self.num_requests = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def in_use(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Let huggingface_hub in this process ask this server, with a cache of its own."""
        use_endpoint(monkeypatch, self.address, cache)


def use_endpoint(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """As HF_ENDPOINT and HF_HUB_CACHE would: the library reads them when it is imported."""
    from huggingface_hub import constants

    from dglaunch.models import hub

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(hub, "_silent_since", {})


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.num_requests += path != "/api/agent-harnesses"  # which huggingface_hub asks once in a process
        if self.hub.down:
            return self._send(503, b"down")
        if found := RESOLVE.fullmatch(path):
            return self._file(found["model"], found["revision"], found["file"], with_body)
        if found := TREE.fullmatch(path):
            return self._tree(found["model"])
        if found := LIST.fullmatch(path):
            return self._list(found["model"])
        return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _file(self, model: str, revision: str, name: str, with_body: bool) -> None:
        if model not in self.hub.models:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if model in self.hub.gated:
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        if revision not in ("main", COMMIT):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        file = self.hub.models[model] / name
        if not file.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content, status = file.read_bytes(), 200
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", "")):
            content, status = content[int(part[1]) : int(part[2] or len(content)) + 1], 206
        content = self.hub.damage.get(name, lambda whole: whole)(content)
        if with_body:
            self.hub.fetched[name] = self.hub.fetched.get(name, 0) + len(content)
        return self._send(status, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{file.name}-{len(content)}"'})

    def _list(self, model: str) -> None:
        if model not in self.hub.models:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        folder = self.hub.models[model]
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        siblings = [self._listed(folder, file) for file in files]
        answer = {"id": model, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False, "downloads": 0}
        return self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _tree(self, model: str) -> None:
        """The same files as snapshot_download asks for them."""
        if model not in self.hub.models:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        folder = self.hub.models[model]
        files = [self._listed(folder, file) for file in sorted(folder.rglob("*")) if file.is_file()]
        listed = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": f["blobId"]} for f in files]
        return self._send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def _listed(self, folder: Path, file: Path) -> dict[str, object]:
        """As the hub lists it: weights are kept apart from git, by their sha256."""
        content = file.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        listed = {"rfilename": str(file.relative_to(folder)), "size": len(content), "blobId": blob}
        if file.suffix == ".safetensors":
            listed["lfs"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
        return listed

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""
