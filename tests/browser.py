"""Pages in headless Chromium: watched for errors and requests, photographed when a test fails."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium")
FAILURES = Path(__file__).resolve().parent.parent / ".pytest_cache" / "browser"
"""Where screenshots of failed tests are kept."""


@dataclass
class Watch:
    """What went wrong in a page: errors of its scripts, and requests that left the machine."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def listen(self, page: Any) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in (
                "127.0.0.1", "localhost"):
            self.requests.append(url)


_running: list[Any] = []  # Chromium, how to stop it, and how many pages are open in it


@contextlib.contextmanager
def watched_page(width: int = 1280, height: int = 900) -> Iterator[tuple[Any, Watch]]:
    """Yield a page of headless Chromium; skip the test where there is none.

    Pages that are open at the same time share one Chromium, as playwright demands of a thread.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    if not _running:
        playwright = sync_api.sync_playwright().start()
        _running[:] = [playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]), playwright.stop, 0]
    chromium, stop, _ = _running
    _running[2] += 1
    page = chromium.new_page(viewport={"width": width, "height": height})
    watch = Watch()
    watch.listen(page)
    try:
        yield page, watch
    finally:
        page.close()
        _running[2] -= 1
        if not _running[2]:
            _running.clear()
            chromium.close()
            stop()


@contextlib.contextmanager
def photographed(page: Any, name: str) -> Iterator[None]:
    """Keep a screenshot of the page when the body fails, and say where."""
    try:
        yield
    except BaseException as error:
        FAILURES.mkdir(parents=True, exist_ok=True)
        path = FAILURES / f"{name}.png"
        with contextlib.suppress(Exception):  # the page may be what has failed
            page.screenshot(path=path, full_page=True)
            error.add_note(f"screenshot: {path}")
        raise


@contextlib.contextmanager
def opened(path: Path, width: int = 1280) -> Iterator[tuple[Any, list[str], list[str]]]:
    """Open a report from its file; yield the page when all is drawn, its errors and requests."""
    with watched_page(width) as (page, watch):
        page.goto(path.as_uri(), timeout=120_000)
        page.wait_for_selector("body[data-drawn=all]", timeout=120_000)
        with photographed(page, path.stem):
            yield page, watch.errors, watch.requests
