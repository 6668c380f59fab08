"""The laboratory without a page: its tabs, its address, and what it says of what it cannot show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from finemem_lib.explorers.evidence import memory_player
from finemem_lib.explorers.laboratory import MAX_FIELDS, PAGES, Laboratory, Material, Say, Source
from finemem_lib.lesson.cases import disagreement, pushed_out, toy
from finemem_lib.readers.extractive import reader_for
from tests.helpers.figure_samples import make_trajectory
from tests.helpers.rollout_samples import rollouts


def source(name: str, load: Callable[[Say], Material]) -> Source:
    return Source(name, f"example: {name}", load)


def lesson(say: Say) -> Material:
    say("Playing the lesson")
    groups = {"toy": [toy()], "pushed out": pushed_out(), "disagreement": [disagreement()]}
    return Material(groups, reader_for)


def opened(query: str = "", *more: Source) -> Laboratory:
    """Return a laboratory on the lesson, and on more sources, that was opened with an address."""
    laboratory = Laboratory([source("lesson", lesson), *more])
    laboratory.open_address(query)
    return laboratory


def shown(laboratory: Laboratory) -> dict[str, Any]:
    return {name: figure.to_json() for name, figure in laboratory.views.items()}


@pytest.mark.parametrize("page", ["evidence", "what-if", "compare", "memory"])
def test_a_tab_shows_figures_of_what_was_chosen(page: str) -> None:
    laboratory = opened(f"?tab={page}&stream=pushed out")
    assert laboratory.views and laboratory.notices == [] and laboratory.error == ""
    assert laboratory.controls["stream"].value == 1


@pytest.mark.parametrize(("page", "word"), [("completions", "tokens"), ("training", "notebook 04")])
def test_a_tab_that_has_nothing_to_show_says_what_would_give_it_something(
    page: str, word: str
) -> None:
    laboratory = opened("?tab=memory")
    laboratory.open_page(page)
    [notice] = laboratory.notices
    assert word in notice and not laboratory.views and "source" in laboratory.controls
    laboratory.open_page("memory")
    assert laboratory.views and laboratory.notices == []


def test_an_address_shows_again_what_a_reader_chose() -> None:
    one = opened()
    one.open_page("what-if")
    for name, value in (("stream", 1), ("rollout", 1), ("rule", "csr"), ("step", 3), ("k", 1)):
        one.set(name, value)
    one.open("advantages")
    one.projector = True
    other = opened(one.address)
    assert (other.page, other.view, other.projector) == ("what-if", "advantages", True)
    assert other.state == one.state and other.address == one.address
    assert shown(other) == shown(one) and other.notices == []


def test_an_address_names_what_was_chosen_only_and_by_what_the_menu_shows() -> None:
    laboratory = opened("?tab=what-if")
    assert laboratory.address == "?source=lesson&tab=what-if"
    laboratory.set("stream", 1)
    laboratory.set("rollout", 1)
    assert laboratory.address == "?source=lesson&tab=what-if&stream=pushed%20out&rollout=2"


def test_a_choice_is_kept_from_tab_to_tab() -> None:
    laboratory = opened("?tab=what-if&stream=disagreement")
    laboratory.set("step", 7)
    laboratory.open_page("memory")
    assert laboratory.state["step"] == 7 and laboratory.state["stream"] == 2
    laboratory.set("stream", 0)  # toy, which has five steps
    assert laboratory.views and laboratory.state["step"] <= 5
    assert laboratory.error == ""


def test_a_view_is_kept_when_a_reader_comes_back_to_its_tab() -> None:
    laboratory = opened()
    laboratory.open("heatmap")
    laboratory.set("selected", "question 1")
    assert laboratory.view == "heatmap"
    laboratory.open_page("memory")
    laboratory.open_page("evidence")
    assert laboratory.view == "heatmap"


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("?source=gone", "“gone” as run or example"),
        ("?tab=what-if&rule=mine", "“mine” as rule"),
        ("?tab=nothing", "tab “nothing”"),
        ("?stream=<b>x</b>", "“<b>x</b>” as instance"),
        ("?tab=memory&step=99", "“99” as after step t"),
        (
            "?" + "&".join(f"a{n}=1" for n in range(MAX_FIELDS + 1)),
            f"more than {MAX_FIELDS} fields",
        ),
    ],
)
def test_an_address_that_asks_for_what_is_not_there_gets_a_sentence(query: str, word: str) -> None:
    laboratory = opened(query)
    [notice] = laboratory.notices
    assert word in notice and laboratory.views and laboratory.error == ""
    laboratory.open_page("evidence" if laboratory.page == "memory" else "memory")
    assert laboratory.notices == []


def test_a_long_word_of_an_address_is_cut() -> None:
    [notice] = opened("?source=" + "w" * 100_000).notices
    assert len(notice) < 300


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("run a has no trajectories"), "run a has no trajectories"),
        (KeyError("scheme"), "This cannot be shown: KeyError: 'scheme'"),
    ],
)
def test_a_source_that_cannot_be_read_leaves_the_others(error: Exception, said: str) -> None:
    def load(say: Say) -> Material:
        raise error

    laboratory = opened("?source=broken", source("broken", load))
    assert laboratory.notices == [said] and not laboratory.views
    laboratory.set("source", "lesson")
    assert laboratory.notices == [] and laboratory.views


def test_nothing_is_loaded_before_it_is_chosen() -> None:
    calls = []

    def load(say: Say) -> Material:
        calls.append("source")
        groups = {"one": rollouts("", 3)}

        def training(say: Say) -> Any:
            calls.append("training")
            return memory_player(make_trajectory())

        return Material(groups, reader_for, training=training)

    laboratory = opened("", source("other", load))
    assert calls == []
    laboratory.set("source", "other")
    laboratory.open_page("memory")
    assert calls == ["source"]
    for page in ("training", "evidence", "training"):
        laboratory.open_page(page)
    assert calls == ["source", "training"]


def test_what_takes_time_is_shown_while_it_is_done() -> None:
    laboratory = Laboratory([source("lesson", lesson)])
    said: list[str] = []
    laboratory.widget.observe(lambda change: said.append(change.new), "status")
    laboratory.open_address("?tab=what-if")
    assert said == ["Playing the lesson", "Looking for the step that changes an answer"]


def test_a_rollout_that_another_agent_answered_is_shown_without_rules_that_read_again() -> None:
    def load(say: Say) -> Material:
        return Material({"one": rollouts("", 3)}, reader_for)

    laboratory = opened("?source=other&tab=what-if", source("other", load))
    rules = [value for _, value in laboratory.controls["rule"].options]
    assert "eara" in rules and "step-shapley" not in rules
    again = opened("?tab=what-if&stream=pushed out").controls["rule"].options
    assert "step-shapley" in [value for _, value in again]


def test_every_message_of_a_page_is_answered_also_one_about_a_control_that_is_gone() -> None:
    laboratory = opened("?tab=what-if")
    receive = laboratory.widget.received
    for message in (
        {"page": "memory"},
        {"control": "rule", "option": 2},
        {"projector": True},
        {"control": "step", "option": 1},
        {"address": "?tab=compare"},
        {"view": "difference"},
        {"table": True},
    ):
        before = laboratory.widget.panel["answers"]
        receive(message)
        assert laboratory.widget.panel["answers"] == before + 1, message
        assert laboratory.widget.panel["error"] == ""
    assert laboratory.page == "compare" and laboratory.view == "difference"


def test_the_panel_names_all_tabs() -> None:
    panel = opened().widget.panel
    assert [name for name, _ in panel["pages"]] == [*PAGES]
    assert panel["page"] == "evidence" and panel["trace"] == ""


def test_a_control_that_leaves_no_choice_is_not_shown() -> None:
    panel = opened("?tab=compare&stream=toy").widget.panel
    assert [one["name"] for one in panel["controls"]] == ["source", "stream", "scheme", "scale"]
    assert panel["views"]
