"""A package index on loopback for pip: wheels from a dictionary, and what was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class PackageIndex:
    """Wheels by package and file name; both may change while it serves."""

    def __init__(self) -> None:
        self.wheels: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.address = ""


@contextmanager
def package_index() -> Iterator[PackageIndex]:
    """Serve the simple repository routes: /simple/PACKAGE/ and /wheels/PACKAGE/FILE."""
    index = PackageIndex()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            index.requests.append(self.path)
            _, route, package, *rest = self.path.split("/")
            files = index.wheels.get(package, {})
            if route == "simple" and files:
                links = "".join(f'<a href="/wheels/{package}/{name}">{name}</a>' for name in files)
                self.send(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")
            elif route == "wheels" and rest[0] in files:
                self.send(files[rest[0]], "application/octet-stream")
            else:
                self.send_error(404)

        def send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    index.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
