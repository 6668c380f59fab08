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

from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT, wait_until

CHROMIUM = shutil.which("chromium")
FAILURES = ROOT / ".pytest_cache" / "browser"
"""Where screenshots of failed tests are kept."""


TOKENS = """area => [...area.querySelectorAll(".js-plotly-plot")]
    .filter(plot => plot.layout?.coloraxis).flatMap(plot => [...plot.querySelectorAll(".point")])
    .map(point => [point.querySelector("text").textContent,
                   getComputedStyle(point.querySelector("path")).fill])"""
"""Text and colour of the tokens of `figures.completion_view` below an element."""


SLOW = "[anywidget] Failed to initialize model."
"""What anywidget says of a figure that a busy machine has not drawn within two seconds; the figure
comes all the same, which the tests see for themselves."""


@dataclass
class Watch:
    """What went wrong in a page: errors of its scripts, and requests that left the machine."""

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def listen(self, page: Any) -> None:
        page.on("pageerror", lambda error: self._failed(str(error)))
        page.on("request", lambda request: self._asked(request.url))

    def _failed(self, error: str) -> None:
        if error != SLOW:
            self.errors.append(error)

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            self.requests.append(url)


PATIENCE = 1000 * LAST_RESORT
"""Milliseconds after which a page is given up; other work may slow it down."""


def skip_without_chromium() -> Any:
    """Skip the test on a machine without Chromium or playwright; return playwright's module."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    return pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


_running: list[Any] = []  # Chromium, and how to stop it; while pages are open in it
_pages: list[Any] = []


@contextlib.contextmanager
def watched_page(width: int = 1280, height: int = 900) -> Iterator[tuple[Any, Watch]]:
    """Yield a page of headless Chromium; skip the test where there is none.

    Pages that are open at the same time share one Chromium, as playwright demands of a thread. It
    is closed with the last one, because its event loop would be in the way of other tests.
    """
    sync_api = skip_without_chromium()
    if not _running:
        playwright = sync_api.sync_playwright().start()
        _running[:] = (
            playwright.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE
            ),
            playwright.stop,
        )
    chromium, stop = _running
    page = chromium.new_page(viewport={"width": width, "height": height})
    page.set_default_timeout(PATIENCE)
    _pages.append(page)
    watch = Watch()
    watch.listen(page)
    try:
        yield page, watch
    except BaseException as error:  # of a fixture, whose page is gone when it is reported
        for path in photograph("set-up"):
            error.add_note(f"screenshot: {path}")
        raise
    finally:
        _pages.remove(page)
        page.close()
        if not _pages:
            _running.clear()
            chromium.close()
            stop()


def photograph(name: str) -> list[Path]:
    """Keep screenshots of all open pages, and return where."""
    paths = []
    for number, page in enumerate(_pages):
        path = FAILURES / f"{name}-{number}.png"
        with contextlib.suppress(Exception):  # the page may be what has failed
            FAILURES.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=path, timeout=60_000)
            paths.append(path)
    return paths


def click_at(figure: Any, x: Any, y: Any) -> None:
    """Click on a place of a figure, given as the values of its first two axes, as soon as plotly
    shows what is there: a figure that is being drawn again forgets the pointer."""
    mouse, label = figure.page.mouse, figure.locator(".hoverlayer .hovertext").first

    def pointed_at() -> Any:
        figure.scroll_into_view_if_needed()
        left, top = figure.evaluate(
            """(plot, [x, y]) => {
                const {xaxis, yaxis} = plot._fullLayout;
                const {left, top} = plot.getBoundingClientRect();
                return [left + xaxis._offset + xaxis.d2p(x), top + yaxis._offset + yaxis.d2p(y)];
            }""",
            [x, y],
        )
        mouse.move(left, top + 1)
        mouse.move(left, top)
        figure.page.wait_for_timeout(100)  # plotly answers a pointer 20 times a second
        return label.is_visible() and (left, top)

    mouse.click(*wait_until(pointed_at))


@contextlib.contextmanager
def opened(path: Path, width: int = 1280) -> Iterator[tuple[Any, list[str], list[str]]]:
    """Open a report from its file and unfold its notebooks; yield the page when all is drawn, its
    errors and requests."""
    with watched_page(width) as (page, watch):
        page.goto(path.as_uri())
        unfold(page)
        yield page, watch.errors, watch.requests


def unfold(page: Any) -> None:
    """Open the notebooks of a report, and wait until all of its figures are drawn."""
    page.evaluate("for (const one of document.querySelectorAll('.notebook')) one.open = true")
    page.wait_for_selector("body[data-drawn=all]")
