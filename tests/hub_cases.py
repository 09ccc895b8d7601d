"""A model hub on loopback: a server that speaks as much of its language as pushing and loading takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> list of commits, each file -> content."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.claimed: dict[str, int] = {}
        self.cards: list[str] = []
        self.pushed_after: tuple[str, str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def number(self, name: str, revision: str) -> int:
        """Which commit a branch, a tag (v0, v1 ...) or a hash means; -1 for none."""
        last = len(self.repositories.get(name, [])) - 1
        if revision in ("", "main"):
            return last
        named = {f"v{number}": number for number in range(last + 1)}
        return (named | {self.sha(name, number): number for number in range(last + 1)}).get(revision, -1)

    def sha(self, name: str, number: int) -> str:
        return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The calls that creating, committing, listing and reading take."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes, head: bool = False, **headers: str) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body)), "Connection": "close"} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if not head:
            self.wfile.write(body)
        self.close_connection = True

    def answer_json(self, content: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(content).encode(), **{"Content_Type": "application/json"} | headers)

    def missing(self) -> None:
        self.answer_json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_POST(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            hub.cards.append(json.loads(body)["content"])
            self.answer_json({"warnings": [], "errors": []})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            hub.repositories.setdefault(name, [])
            hub.private.setdefault(name, asked.get("private", asked.get("visibility") == "private"))
            self.answer_json({"url": f"{hub.address}/{name}", "name": name})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            told = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self.answer_json({"files": told})
        elif "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            files = {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            hub.repositories[name].append(files)
            sha = hub.sha(name, len(hub.repositories[name]) - 1)
            self.answer_json({"success": True, "commitOid": sha, "commitUrl": f"{hub.address}/{name}/commit/{sha}"})
        else:
            self.missing()

    def do_HEAD(self) -> None:
        self.read(head=True)

    def do_GET(self) -> None:
        self.read(head=False)

    def read(self, head: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(path)
        if path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            number = hub.number(name, revision)
            if number < 0:
                self.missing()
                return
            sizes = {file: len(content) for file, content in hub.repositories[name][number].items()} | hub.claimed
            siblings = [{"rfilename": file, "size": size} for file, size in sizes.items()]
            self.answer_json({"id": name, "sha": hub.sha(name, number), "siblings": siblings, "private": False})
            return
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        number = hub.number(name, revision)
        if number < 0 or file not in hub.repositories[name][number]:
            self.missing()
            return
        content = hub.repositories[name][number][file]
        if (name, file) == hub.pushed_after and not head:  # somebody saves again between two files
            hub.repositories[name].append(
                {file: content + b" " for file, content in hub.repositories[name][-1].items()}
            )
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.answer(200, content, head, ETag=etag, X_Repo_Commit=hub.sha(name, number), Accept_Ranges="bytes")


@contextmanager
def hub_in_use(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and huggingface_hub told to use it."""
    server = Hub()
    patch.setattr(constants, "ENDPOINT", server.address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setenv("HF_TOKEN", "hf_secret")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
