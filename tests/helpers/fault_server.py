"""An OpenAI-compatible server on loopback that answers by a function and fails by a seed.

It counts, per request body, how often a whole completion was handed over: what would be paid.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from finemem_lib.seeds import generator
from tests.helpers.patience import LAST_RESORT

FAULTS = ("drop", "stall", "limit", "error", "truncate", "garbage", "shape")
"""What can go wrong on the way: the connection closes at once or after a while, 429, 500, a body
cut off, a body that is not JSON, JSON that is no completion."""

RETRY_AFTER = 0.2


def completion(text: str | None, **message: Any) -> dict[str, Any]:
    """Return a completion as servers send it, with 10 tokens in and 5 out."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, **message},
            }
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


class FaultServer(ThreadingHTTPServer):
    """Use it in a `with` statement; `answer` gets the request and returns a text or a completion.

    share: of requests that fail, by `seed`, the request and how often it came before.
    gate: hold replies until so many are under way (or the last resort), to see how many ever are.
    status, body: answer every request with these instead.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Any] = lambda request: "yes",
        faults: Sequence[str] = (),
        share: float = 0.0,
        seed: int = 0,
        delay: float = 0.0,
        gate: int = 0,
        status: int = 200,
        body: str | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.faults, self.share, self.seed = answer, faults, share, seed
        self.delay, self.gate, self.status, self.body = delay, gate, status, body
        self.base_url = f"http://127.0.0.1:{self.server_port}/v1"
        self.came: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.requests: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.early = 0  # requests that came back before Retry-After had passed
        self.under_way = self.most_under_way = 0
        self.changed = threading.Condition()
        self._limited: dict[str, float] = {}
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FaultServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the game."""

    def begins(self, body: str, authorization: str | None) -> str | None:
        """Note a request; return the fault it meets, if any."""
        with self.changed:
            self.came[body] += 1
            self.requests.append(json.loads(body))
            self.authorizations.add(authorization)
            self.early += time.monotonic() < self._limited.pop(body, 0.0)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            self.changed.notify_all()
            if self.gate:
                self.changed.wait_for(lambda: self.most_under_way >= self.gate, LAST_RESORT)
            rng = generator(self.seed, body, self.came[body])
            fault = rng.choice(self.faults) if rng.random() < self.share else None
            if fault:
                self.failed[fault] += 1
            if fault == "limit":
                self._limited[body] = time.monotonic() + RETRY_AFTER
        time.sleep(rng.uniform(0, 2 * self.delay))
        return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        fault = self.server.begins(body, self.headers.get("Authorization"))
        try:
            self._answer(body, fault)
        finally:
            with self.server.changed:
                self.server.under_way -= 1

    def _answer(self, body: str, fault: str | None) -> None:
        if fault in ("drop", "stall"):
            time.sleep(0.1 if fault == "stall" else 0)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif fault == "limit":
            self._send(429, '{"error": {"message": "slow down"}}', RETRY_AFTER)
        elif fault == "error":
            self._send(500, "<html>oops</html>")
        elif fault == "garbage":
            self._send(200, '{"choices": [')
        elif fault == "shape":
            self._send(200, '{"error": {"message": "overloaded"}}')
        elif fault == "trickle":
            self._headers(200, 10_000)
            while True:  # until the client hangs up
                self.wfile.write(b" ")
                time.sleep(0.05)
        elif self.server.body is not None:
            self._send(self.server.status, self.server.body)
        else:
            answered = self.server.answer(json.loads(body))
            if not isinstance(answered, dict):
                answered = completion(answered)
            text = json.dumps(answered)
            if fault == "truncate":
                self._headers(200, len(text))
                self.wfile.write(text[: len(text) // 2].encode())
                self.close_connection = True
                return
            with self.server.changed:
                self.server.paid[body] += 1
                self.server.changed.notify_all()
            self._send(200, text)

    def _send(self, status: int, text: str, retry_after: float | None = None) -> None:
        self._headers(status, len(text.encode()), retry_after)
        self.wfile.write(text.encode())

    def _headers(self, status: int, length: int, retry_after: float | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""
