"""`finemem app`: what it offers, what it refuses, and the laboratory in a real browser."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from finemem_lib.cli import app, sources
from finemem_lib.cli.main import main
from finemem_lib.cli.sources import find_sources
from finemem_lib.data.planted import planted_instances
from finemem_lib.explorers.laboratory import Laboratory
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.runs.run import start_run
from tests.helpers.browser import Watch, skip_without_chromium, watched_page
from tests.helpers.lab import settled
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT, wait_until
from tests.helpers.run_samples import make_bare_run

HOSTILE = "<img src=x onerror='window.ran=1'><script>window.ran=1</script>"


def make_runs(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write three runs: one with trajectories, one without, and one with a broken manifest."""
    patch.setenv("FINEMEM_RUNS_DIR", str(folder))
    first = start_run("01_question_generation", {"run_id": "played"})
    instances = planted_instances("held-out", 2, seed=0)
    first.save("instances", instances)
    first.finish()
    second = start_run("02_memory_and_retrieval", {"run_id": "played"})
    instances = second.load("instances")
    reader, settings = reader_for(instances), RolloutSettings(num_generations=1)
    managers = [make_manager(name) for name in ("insert-all", "random")]
    groups = [play(instances, manager, settings, reader, seed=0) for manager in managers]
    second.save("trajectories", [one for some in groups for group in some for one in group])
    second.finish()
    make_bare_run(folder / "empty")
    (make_bare_run(folder / "broken") / "manifest.json").write_text(f'{{"run_id": "{HOSTILE}')


def test_the_kernel_works_in_the_folder_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv(app.WORKING_FOLDER, str(tmp_path))
    shown = []
    monkeypatch.setattr(sources, "display_bundle", lambda widget, raw: shown.append(widget))
    sources.open_laboratory()
    assert Path.cwd() == tmp_path and len(shown) == 1


@pytest.fixture
def laboratory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    make_runs(tmp_path, monkeypatch)
    return Laboratory(find_sources())


def test_the_menu_has_the_examples_and_the_runs_of_list(laboratory: Laboratory) -> None:
    names = [*laboratory.sources]
    assert [name.startswith("example:") for name in names] == [True] * 4 + [False] * 3
    assert {*names[4:]} == {"played", "empty", "broken"}


@pytest.mark.parametrize("name", ["planted", "lesson", "by-hand"])
@pytest.mark.parametrize("page", ["evidence", "what-if", "compare", "memory"])
def test_every_example_has_figures_in_every_tab(
    laboratory: Laboratory, name: str, page: str
) -> None:
    laboratory.open_address(f"?source=example:{name}&tab={page}")
    assert laboratory.views and laboratory.notices == [] and laboratory.error == ""


def test_the_tiny_language_model_has_completions(laboratory: Laboratory) -> None:
    laboratory.open_address("?source=example:tiny&tab=completions")
    assert [*laboratory.views] == ["prompt", "group"] and laboratory.notices == []


def test_the_rollouts_of_an_instance_in_a_run_are_those_of_all_its_managers(
    laboratory: Laboratory,
) -> None:
    laboratory.open_address("?source=played&tab=what-if")
    texts = [text for text, _ in laboratory.controls["rollout"].options]
    assert texts == ["1: insert-all", "2: random"]
    assert laboratory.controls["stream"].options[0][0].startswith("scripted stream 1:")
    assert "step-shapley" in [rule for _, rule in laboratory.controls["rule"].options]


@pytest.mark.parametrize(
    ("run", "said"), [("empty", "has no trajectories"), ("broken", "no readable manifest.json")]
)
def test_a_run_that_cannot_be_shown_says_why(laboratory: Laboratory, run: str, said: str) -> None:
    laboratory.open_address(f"?source={run}")
    [notice] = laboratory.notices
    assert said in notice and not laboratory.views


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((app.HOST, 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_run_that_is_not_there_is_refused(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path))
    assert main(["app", "gone"]) == 2
    assert "there is no run 'gone'" in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(capsys) -> None:
    with taken_port() as port:
        assert main(["app", "--port", str(port)]) == 2
    assert f"{port} is taken" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["80", "65536", "-1", "http"])
def test_what_is_no_port_is_refused(port: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["app", f"--port={port}"])
    assert "expected a port" in capsys.readouterr().err


@dataclass(frozen=True)
class Served:
    """A running `finemem app`."""

    url: str
    process: subprocess.Popen[str]

    @contextlib.contextmanager
    def page(self, query: str = "") -> Iterator[tuple[Any, Watch]]:
        """Open a page on a screen of a projector, and yield it when the first figure is drawn."""
        with watched_page(1280, 800) as (page, watch):
            page.goto(self.url + query.replace("?", "&", 1))
            settled(page.locator("body"))
            yield page, watch


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    skip_without_chromium()
    with pytest.MonkeyPatch.context() as patch, taken_port() as port:
        make_runs(tmp_path_factory.mktemp("app") / "runs", patch)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "finemem_lib", "app", "--no-browser", "--port", str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout
    first = process.stdout.readline()
    try:
        yield Served(first.split()[-1], process)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LAST_RESORT)


HIDDEN = """() => {
    const root = document.querySelector(".finemem-laboratory");
    const outside = element => {
        const {top, bottom, left, right} = element.getBoundingClientRect();
        return top < 0 || left < 0 || bottom > innerHeight + 1 || right > innerWidth + 1;
    };
    const parts = [...root.querySelectorAll("input, select, button, .main-svg, p")];
    const scrolled = [document.documentElement, ...root.querySelectorAll("*")].filter(element =>
        element.scrollHeight > element.clientHeight + 1
        && ["auto", "scroll"].includes(getComputedStyle(element).overflowY));
    return [...parts.filter(part => part.checkVisibility() && outside(part)), ...scrolled]
        .map(part => part.ariaLabel || part.className.baseVal || part.className || part.tagName);
}"""
"""What of the laboratory cannot be seen without scrolling."""


def press_tab(page: Any, name: str) -> None:
    """Walk to a tab of the laboratory with the arrow keys."""
    tabs = page.locator(".finemem-pages")
    tabs.locator("[aria-selected=true]").focus()
    while page.evaluate("document.activeElement.textContent") != name:
        page.keyboard.press("ArrowRight")
    settled(page.locator("body"))
    assert tabs.locator("[aria-selected=true]").inner_text() == name


@pytest.mark.browser
def test_everything_fits_one_screen_and_moves_by_keyboard(served: Served) -> None:
    with served.page() as (page, watch):
        assert page.title() == "Credit laboratory"
        for name in ("Evidence", "What-if", "Rollout compare", "Memory player"):
            press_tab(page, name)
            assert page.locator(".js-plotly-plot").is_visible()
            assert page.evaluate(HIDDEN) == [], name
            for control in page.locator(".finemem-controls").locator("select, input").all():
                assert control.get_attribute("aria-label")
        assert (
            page.locator(".jp-InputArea, .jp-Cell-inputWrapper").locator("visible=true").count()
            == 0
        )
        for name, said in (("Completions", "No language model wrote"), ("Training", "notebook 04")):
            press_tab(page, name)
            assert said in page.locator(".finemem-notices").inner_text()
        assert watch.errors == [] and watch.requests == []


@pytest.mark.browser
def test_the_address_follows_the_reader_and_leads_back(served: Served) -> None:
    with served.page("?tab=what-if") as (page, watch):
        for label, key in (("rule", "ArrowDown"), ("step t", "ArrowLeft")):
            page.get_by_label(label, exact=True).focus()
            page.keyboard.press(key)
            settled(page.locator("body"))
        page.locator(".finemem-bar [role=tab]", has_text="Advantages").click()
        before, link = settled(page.locator("body")), page.url
        rule = page.get_by_label("rule", exact=True).input_value()
        assert "source=example:planted&tab=what-if" in link and "view=advantages" in link
        assert "rule=" in link and "step=" in link
        page.goto(link)
        page.wait_for_selector(".finemem-laboratory")
        assert settled(page.locator("body")) == before and page.url == link
        assert page.get_by_label("rule", exact=True).input_value() == rule
        assert watch.errors == [] and watch.requests == []


@pytest.mark.browser
def test_large_type_is_read_from_the_last_row_and_clicks_meet_their_mark(served: Served) -> None:
    with served.page("?source=example:lesson&stream=disagreement&view=timeline") as (page, watch):
        small = page.locator(".js-plotly-plot .xtick text").first.bounding_box()["height"]
        page.locator(".finemem-large").focus()
        page.keyboard.press("Enter")
        page.wait_for_selector(".finemem-projector")
        settled(page.locator("body"))
        assert "projector=1" in page.url
        large = page.locator(".js-plotly-plot .xtick text").first.bounding_box()["height"]
        assert large > 1.4 * small
        sizes = page.locator(".finemem-controls label").evaluate_all(
            "labels => labels.map(label => parseFloat(getComputedStyle(label).fontSize))"
        )
        assert min(sizes) >= 20
        assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        box = page.locator(".js-plotly-plot .scatterlayer .point").first.bounding_box()
        at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

        def pointed_at() -> bool:
            page.mouse.move(at[0], at[1] + 1)
            page.mouse.move(*at)
            page.wait_for_timeout(100)  # plotly answers a pointer 20 times a second
            return page.locator(".hoverlayer .hovertext").first.is_visible()

        wait_until(pointed_at)
        page.mouse.click(*at)
        page.wait_for_function("new URLSearchParams(location.search).has('selected')")
        assert watch.errors == []


@pytest.mark.browser
def test_a_hostile_address_and_a_broken_run_are_sentences(served: Served) -> None:
    with served.page(f"?source=broken&tab=evidence&{HOSTILE}={HOSTILE}") as (page, watch):
        notices = page.locator(".finemem-notices")
        assert "'broken' has no readable manifest.json" in notices.inner_text()
        assert page.locator("text=Traceback").locator("visible=true").count() == 0
        page.goto(f"{served.url}&source={HOSTILE}&tab={HOSTILE}&template=../x&theme=dark")
        page.wait_for_selector(".finemem-laboratory")
        settled(page.locator("body"))
        assert notices.inner_text().count("<script>") == 2
        assert page.evaluate("window.ran === undefined")
        assert watch.errors == [] and watch.requests == []


@pytest.mark.browser
@pytest.mark.parametrize("path", ["", "api/kernels"])
def test_without_the_token_there_is_only_a_login(served: Served, path: str) -> None:
    base, _, _ = served.url.partition("?")
    with urllib.request.urlopen(f"{base}{path}", timeout=LAST_RESORT) as answer:
        assert "/login" in answer.url and "finemem" not in answer.read().decode()


@pytest.mark.browser
def test_only_this_machine_is_answered_and_nothing_is_left_running(served: Served) -> None:
    """The last test: it ends the server."""
    server = psutil.Process(served.process.pid)
    [voila] = server.children()
    listening = [one.laddr.ip for one in voila.net_connections() if one.status == "LISTEN"]
    assert {*listening} == {app.HOST}
    family = server.children(recursive=True)
    served.process.send_signal(signal.SIGINT)
    output, _ = served.process.communicate(timeout=LAST_RESORT)
    last = dict(word.split("=", 1) for word in shlex.split(output.splitlines()[-1]))
    assert served.process.returncode == 0
    assert last["status"] == "ok" and last["url"] == served.url
    psutil.wait_procs(family, timeout=LAST_RESORT)
    assert not any(one.is_running() for one in family)
