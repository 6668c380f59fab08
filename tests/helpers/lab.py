"""JupyterLab as its users have it: a server, notebooks run in its page, figures read from there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from tests.helpers.browser import Watch, watched_page
from tests.helpers.notebook_runs import SMALL_RUN
from tests.helpers.patience import LAST_RESORT, wait_until

STATE = """area => JSON.stringify([...area.querySelectorAll(".js-plotly-plot")].map(
    plot => [plot.data.map(trace => ({...trace, uid: 0})), plot.layout.shapes,
             plot.layout.title, plot.layout.yaxis]))"""
"""What the figures below an element show."""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, its folder, and the folder of the runs that its kernels
    see; notebooks take the artefacts that they lack from `SMALL_RUN` there."""

    url: str
    folder: Path
    runs: Path

    @contextlib.contextmanager
    def saved(self, notebook: Any, name: str) -> Iterator[tuple[Any, Watch]]:
        """Open a notebook in a page of its own, with the outputs that it has, and yield the page:
        JupyterLab does not trust them."""
        nbformat.write(notebook, self.folder / name)
        with watched_page(1300, 1500) as (page, watch):
            page.goto(f"{self.url}/lab/tree/{name}?token=t&reset")
            page.wait_for_selector(".jp-Notebook .jp-CodeCell")
            yield page, watch

    @contextlib.contextmanager
    def ran(self, notebook: Any, name: str) -> Iterator[tuple[Any, Watch]]:
        """Open a notebook in a page of its own, run all its cells, and yield the page."""
        with self.saved(notebook, name) as (page, watch):
            page.wait_for_selector(
                ".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached"
            )
            page.wait_for_selector("text=/\\| Idle/")  # the kernel has answered
            page.evaluate("""() => {
                window.succeeded = null;
                jupyterapp.commands.execute("notebook:run-all-cells")
                    .then(succeeded => window.succeeded = succeeded);
            }""")
            page.wait_for_function("window.succeeded !== null")
            assert page.evaluate("window.succeeded"), page.locator(
                ".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']"
            ).all_inner_texts()
            yield page, watch


@contextlib.contextmanager
def served(root: Path) -> Iterator[Lab]:
    """Run JupyterLab in a folder of its own, and stop it with its kernels."""
    for plugin, setting in (
        # else JupyterLab takes cells out of the page that are out of sight, and asks about news
        ("notebook-extension/tracker", '{"windowingMode": "none"}'),
        ("apputils-extension/notification", '{"fetchNews": "false"}'),
    ):
        path = root / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(setting)
    (root / "work").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "FINEMEM_RUNS_DIR": str(root / "runs"),
        "FINEMEM_REUSE_RUN": SMALL_RUN,
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "PLOTLY_RENDERER": "plotly_mimetype",
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces"),
        "IPYTHONDIR": str(root / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(root / "runtime"),
        "JUPYTER_CONFIG_DIR": str(root / "config"),
    }
    for name in ("FINEMEM_EXPLORERS", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyter",
            "lab",
            "--no-browser",
            "--allow-root",
            "--expose-app-in-browser",
            "--ServerApp.token=t",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={root / 'work'}",
            f"--MappingKernelManager.kernel_info_timeout={LAST_RESORT}",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: _answers(port, server))
        yield Lab(f"http://127.0.0.1:{port}", root / "work", root / "runs")
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:  # it waits for its kernels; none may stay behind
            os.killpg(server.pid, signal.SIGKILL)


def _answers(port: int, server: subprocess.Popen) -> bool:
    assert server.poll() is None, "JupyterLab ended before it answered"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def changed(area: Any, before: str) -> str:
    """Wait until the figures below an element show something else, and return it."""
    area.page.wait_for_function(
        f"([area, before]) => ({STATE})(area) !== before",
        arg=[area.element_handle(), before],
    )
    return area.evaluate(STATE)


def settled(area: Any) -> str:
    """Wait until the kernel has answered a live explorer and the figure is drawn; return what the
    figure shows, without the axes, whose ranges plotly finds again each time."""
    root = area.locator(".finemem-explorer")
    root.and_(area.page.locator("[aria-busy=false]")).wait_for()
    return root.locator("[role=img]").first.evaluate("""({data = [], layout}) => JSON.stringify(
        [data.map(trace => ({...trace, uid: 0})), layout?.shapes, layout?.title])""")


def move_every_control(area: Any) -> int:
    """Move every slider and menu of a live explorer by keyboard, there and back, and see the figure
    of a view follow; return how many there are. Those that are folded away are unfolded."""
    for more in area.locator(".finemem-controls details:not([open]) > summary").all():
        more.focus()
        more.press("Enter")
    controls = area.locator(".finemem-controls").locator("input, select").all()
    for control in controls:
        tabs = area.locator("[role=tab]").all()
        assert _moves(area, control) or any(
            _moves(area, control) for tab in tabs if _pressed(area, tab)
        ), control.get_attribute("aria-label")
    assert area.locator("[role=alert]").count() == 0
    return len(controls)


def _pressed(area: Any, button: Any) -> bool:
    button.focus()
    button.press("Enter")
    settled(area)
    return True


def _moves(area: Any, control: Any) -> bool:
    """Return whether a control moves the figure that is shown, and move it there and back."""
    before, was = settled(area), control.input_value()
    control.focus()
    keys = ["ArrowDown", "ArrowUp"]
    control.press(keys[0])
    if control.input_value() == was:  # it stood at its end
        keys.reverse()
        control.press(keys[0])
    after = settled(area)
    assert control.input_value() != was
    assert control.evaluate("control => !control.disabled && control === document.activeElement")
    control.press(keys[1])
    assert settled(area) == before
    assert control.input_value() == was
    return after != before


def on_screen(area: Any) -> dict[str, Any]:
    """Bring a live explorer into the middle of its notebook and return what of its controls and its
    figure is outside of what is seen there, which controls have to be scrolled to, whether the
    figure stands beside them or below one line of them, and its width in pixels."""
    return area.locator(".finemem-explorer").evaluate("""root => {
        root.scrollIntoView({block: "center"});
        const rect = element => element.getBoundingClientRect();
        const within = (element, frame) => rect(element).top >= rect(frame).top - 1
            && rect(element).bottom <= rect(frame).bottom + 1
            && rect(element).left >= rect(frame).left - 1
            && rect(element).right <= rect(frame).right + 1;
        const page = root.closest(".jp-WindowedPanel-outer");
        const [controls, view] = [".finemem-controls", ".finemem-view"]
            .map(name => root.querySelector(name));
        return {
            outside: [root, controls, view].filter(part => !within(part, page))
                .map(part => [part.className, rect(part).height, rect(page).height]),
            hidden: [...controls.querySelectorAll("input, select")]
                .filter(part => part.checkVisibility() && !within(part, controls))
                .map(part => part.ariaLabel),
            beside: rect(controls).right <= rect(view).left
                ? Math.abs(rect(controls).top - rect(view).top) < 60
                : rect(controls).bottom <= rect(view).top && rect(controls).height < 70,
            width: rect(view).width,
        };
    }""")
