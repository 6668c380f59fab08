"""A hub on loopback: what the hub's client asks for, answered from a dictionary.

It serves the revision, tree and file routes of data sets and of models; every commit keeps its
files. The header of a README.md is the card.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finemem_lib.util.yaml_files import parse_yaml

_API = re.compile(
    r"/api/(?:datasets|models)/([^/]+/[^/?]+)(?:/(revision|tree|paths-info)/([^/?]+))?(/[^?]*)?"
)
_FILE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


class _Handler(BaseHTTPRequestHandler):
    """Answers requests of the hub's clients from the repositories of a subclass."""

    protocol_version = "HTTP/1.1"
    repositories: Mapping[str, Mapping[str, Mapping[str, bytes]]]
    branches: Mapping[str, str]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if match := _API.match(self.path):
            name, route, revision, folder = match.groups()
            commit, files = self.found(name, revision or "main")
            if files is None:
                return
            if route in (None, "revision"):
                return self.send(json.dumps(_description(name, commit, files)).encode())
            paths = set(files)
            if route == "paths-info":
                paths &= set(json.loads(asked).get("paths", []))
            under = (folder or "").strip("/")
            entries = [_entry(path, files[path]) for path in paths if path.startswith(under)]
            return self.send(json.dumps(entries).encode())
        if match := _FILE.match(self.path):
            commit, files = self.found(match[1], match[2])
            if files is None:
                return
            if match[3] not in files:
                return self.refuse("EntryNotFound")
            content = files[match[3]]
            return self.send(content, {"X-Repo-Commit": commit, "ETag": f'"{_oid(content)}"'})
        self.refuse("RepoNotFound")

    do_HEAD = do_POST = do_GET

    def found(self, name: str, revision: str) -> tuple[str, Mapping[str, bytes] | None]:
        commits = self.repositories.get(name)
        commit = self.branches.get(revision, revision)
        if commits is None:
            self.refuse("RepoNotFound")
        elif commit not in commits:
            self.refuse("RevisionNotFound")
        else:
            return commit, commits[commit]
        return commit, None

    def refuse(self, code: str) -> None:
        self.send(b"{}", {"X-Error-Code": code}, 404)

    def send(
        self, body: bytes, headers: Mapping[str, str] | None = None, status: int = 200
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def hub(
    repositories: Mapping[str, Mapping[str, Mapping[str, bytes]]],
    branches: Mapping[str, str],
) -> Iterator[str]:
    """Serve repositories (name -> commit -> path -> content) and give the address; `branches` are
    names of commits, "main" the newest."""
    served = {"repositories": repositories, "branches": branches}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), served))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _description(name: str, commit: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "_id": "0",
        "id": name,
        "sha": commit,
        "siblings": [_sibling(path, content) for path, content in files.items()],
        "cardData": _card(files.get("README.md", b"")),
        "tags": [],
        "private": False,
        "gated": False,
        "downloads": 0,
        "likes": 0,
    }


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}


def _sibling(path: str, content: bytes) -> dict[str, Any]:
    """Return what the hub says of a file; of weights, which it stores apart, also their hash."""
    lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
    large = {"lfs": lfs} if path.endswith(".safetensors") else {}
    return {"rfilename": path, "size": len(content), **large}


def _card(readme: bytes) -> dict[str, Any] | None:
    match = re.match(rb"---\n(.*?)\n---\n", readme, re.DOTALL)
    return parse_yaml(match[1].decode()) if match else None


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
