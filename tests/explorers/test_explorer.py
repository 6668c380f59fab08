"""Explorers without a browser: states, linking, errors that are shown, and the static form."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from typing import Any

import plotly.graph_objects as go
import pytest

from finemem_lib import explorers, figures
from finemem_lib.advantages import group_relative
from finemem_lib.credit import counterfactual, group as group_rules
from finemem_lib.credit.rules import RULES, assign
from finemem_lib.data.worked_example import worked_example
from finemem_lib.evaluation.failure_stages import STAGES, failure_stages
from finemem_lib.explorers.evidence import LONG as LONG_STREAM, WINDOW
from finemem_lib.explorers.explorer import SEE_ALL, Control, Explorer
from finemem_lib.explorers.live import Live
from finemem_lib.figures import story as story_figures, style
from finemem_lib.figures.evidence_flow import STRONG
from finemem_lib.figures.frames import at_frame
from finemem_lib.figures.history import memory_history, per_trajectory
from finemem_lib.figures.memory import MEMORY_STATES
from finemem_lib.rewards import (
    RewardSettings,
    evidence_contribution,
    hybrid_reward,
    outcome_reward,
)
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import creation_key
from tests.helpers.explorer_samples import assert_frames_are_the_states, bar, drill, static_states
from tests.helpers.figure_samples import OWN_MARKUP, long_trajectory, make_trajectory, strings
from tests.helpers.patience import LAST_RESORT

POISON = "<script>ran=1</script> $x$ \u202eעברית العربية 🧠 "
LONG = "w" * 10_000 + " "


def make_group(poison: str = "") -> list[Any]:
    return [
        dataclasses.replace(make_trajectory(seed, poison=poison), instance_id="one", rollout=seed)
        for seed in range(3)
    ]


def make_explorers(poison: str = "") -> dict[str, Explorer]:
    return {
        "evidence": explorers.evidence_explorer(make_trajectory(poison=poison)),
        "memory_player": explorers.memory_player(make_trajectory(poison=poison)),
        "what_if": explorers.what_if_explorer(make_group(poison)),
    }


EXPLORERS = make_explorers()


def toy(build: Any = None, **control: Any) -> Explorer:
    options = {"options": [("one", 1), ("two", 2), ("three", 3)], "static": True} | control
    return Explorer(
        "Toy",
        (Control("n", "n", **options),),
        build or (lambda n: {"a": bar([n, 2 * n], [1, 3]), "b": bar([0, n])}),
    )


# ---- states --------------------------------------------------------------------------------------


def test_controls_settle_on_options_that_exist() -> None:
    depends = Explorer(
        "Drill",
        (
            Control("run", "run", [("first", "a"), ("second", "b")]),
            Control(
                "step",
                "step",
                lambda state: [(str(n), n) for n in ((1, 2) if state["run"] == "a" else (2, 3))],
            ),
        ),
        lambda run, step: {"x": bar([step, step])},
    )
    assert depends.settle({}) == {"run": "a", "step": 1}
    assert depends.settle({"run": "b", "step": 2}) == {"run": "b", "step": 2}
    assert depends.settle({"run": "b", "step": 1}) == {"run": "b", "step": 2}
    live = Live(depends)
    live.set("run", "b")
    assert [value for _, value in live.controls["step"].options] == [2, 3]
    assert live.state == {"run": "b", "step": 2} and live.error == ""


def test_controls_without_options_or_with_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="control 'n' has no options, expected at least one"):
        toy(options=[])
    with pytest.raises(ValueError, match="expected no repeats"):
        Explorer("Twice", (Control("n", "n", [("1", 1)]),) * 2, lambda n: {})


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_option_of_every_control_builds_every_view(name: str) -> None:
    explorer = EXPLORERS[name]
    views = list(explorer.figures())
    for control in explorer.controls:
        for _, value in control.choices(explorer.settle({})):
            figures = explorer.figures(**{control.name: value})
            assert list(figures) == views
            for figure in figures.values():
                go.Figure(figure.to_plotly_json())  # plotly accepts every property of it
                meta = figure.layout.meta
                assert re.search(r"\d", meta["caption"]) and meta["alt"].endswith(".")


# ---- live ----------------------------------------------------------------------------------------


def tell(live: Live, message: Any) -> dict[str, Any]:
    """Send what the page sends, and return the panel that it gets."""
    live.widget._handle_custom_msg(message, [])
    return live.widget.panel


def test_a_control_moves_every_view_and_the_open_one_is_shown_with_caption_and_table() -> None:
    live = Live(toy())
    panel = tell(live, {"control": "n", "option": 2})
    assert live.views["a"].data[0].y == (3, 6) and live.views["b"].data[0].y == (0, 3)
    assert panel["views"] == [["a", "A"], ["b", "B"]] and panel["view"] == "a"
    assert live.widget.spec["data"][0]["y"] == [3, 6]
    assert "Sum 9." in panel["caption"] and panel["table"] == ""
    assert "<td>6</td>" in tell(live, {"table": True})["table"]
    live.set("n", 1)
    table = live.widget.panel["table"]
    assert "<td>2</td>" in table and "<td>6</td>" not in table
    panel = tell(live, {"view": "b"})
    assert live.widget.spec["data"][0]["y"] == [0, 1] and "Sum 1." in panel["caption"]
    assert tell(live, {"control": "n", "option": 1})["view"] == "b"
    assert live.widget.spec["data"][0]["y"] == [0, 2]


def test_the_panel_says_how_each_control_is_shown_and_answers_every_message() -> None:
    """The page sends the next wish only when the last one has been answered."""
    live = Live(toy(kind="slider", play=True, idle=lambda state: state["n"] == 3))
    [control] = live.widget.panel["controls"]
    assert control == {
        "name": "n",
        "label": "n",
        "kind": "slider",
        "rare": False,
        "play": True,
        "place": 0,
        "idle": False,
    }
    assert live.widget.texts == {"n": ["one", "two", "three"]}
    answers = [live.widget.panel["answers"]]
    for option in (2, 2, 7):  # the last one is of a state with more options
        panel = tell(live, {"control": "n", "option": option})
        answers.append(panel["answers"])
        assert panel["controls"][0]["place"] == 2 and panel["controls"][0]["idle"]
    assert len({*answers}) == 4


def test_a_drawing_holds_the_whole_figure_and_loads_plotly_when_asked() -> None:
    """Incident: FigureWidgets of 5 MB each stayed empty, or as they were, on a busy machine."""
    live = Live(toy())
    drawing = live.widget
    assert len(drawing.get_state("_esm")["_esm"]) < 20_000
    live.set("n", 2)
    assert json.loads(json.dumps(drawing.spec))["data"] == live.views["a"].to_plotly_json()["data"]
    sent = []
    drawing.send = lambda content, buffers: sent.append((content, len(buffers[0])))
    drawing._handle_custom_msg("plotly.js", [])
    [(name, size)] = sent
    assert name == "plotly.js" and size > 1_000_000


def test_a_click_sets_the_control_moves_every_view_and_leaves_the_open_one() -> None:
    live = Live(toy())
    tell(live, {"trace": 0, "point": 1})
    assert live.controls["n"].value == 3 and live.views["b"].data[0].y == (0, 3)
    assert live.view == "a"
    live.click("a", 0, [[0, 1]])  # a heatmap names row and column
    assert live.state == {"n": 3}
    tell(live, {"view": "b"})
    tell(live, {"trace": 0, "point": 1})
    assert live.state == {"n": 3} and live.error == ""


def test_a_click_on_a_heatmap_may_choose_by_its_row() -> None:
    """Incident: the column was taken for the row, so that rollouts could not be clicked."""
    explorer = toy()

    def build(n: int) -> dict[str, go.Figure]:
        figures = explorer.build(n)
        figures["a"].layout.meta["clicks"]["points"] = {"0": [[1, 1, 1], [3, 3, None]]}
        return figures

    live = Live(dataclasses.replace(explorer, build=build))
    for point, expected in (([1, 0], 3), ([0, 2], 1), ([1, 2], 1), ([1, 1], 3)):
        live.click("a", 0, [point])
        assert live.state == {"n": expected} and live.error == ""


def test_views_may_change_their_traces_when_live() -> None:
    def build(n: int) -> dict[str, go.Figure]:
        figure = bar([1, n])
        for extra in range(n - 1):
            figure.add_scatter(x=[1, 2], y=[extra, n])
        return {"a": figure}

    live = Live(toy(build))
    for n, traces in ((3, 3), (1, 1), (2, 2)):
        live.set("n", n)
        assert live.error == "" and len(live.views["a"].data) == traces
        assert live.views["a"].data[0].y == (1, n)


def test_an_error_is_shown_the_figures_stay_and_the_next_state_clears_it() -> None:
    def build(n: int) -> dict[str, go.Figure]:
        if n == 2:
            raise KeyError("<b>lost</b>")
        return {"a": bar([n, n])}

    live = Live(toy(build))
    assert live.widget.panel["error"] == ""
    panel = tell(live, {"control": "n", "option": 1})
    assert (
        live.error == panel["error"] == "KeyError: '<b>lost</b>'" and "in build" in panel["trace"]
    )
    assert live.views["a"].data[0].y == (1, 1)
    panel = tell(live, {"control": "n", "option": 2})
    assert live.error == panel["error"] == panel["trace"] == ""
    assert live.views["a"].data[0].y == (3, 3)


def test_an_explorer_that_fails_at_once_still_shows_its_controls_and_recovers() -> None:
    def build(n: int) -> dict[str, go.Figure]:
        return {"a": bar([1 / (n - 1), n])}

    live = Live(toy(build))
    assert "ZeroDivisionError" in live.error and live.views == {}
    assert live.widget.panel["views"] == [] and live.widget.panel["controls"]
    live.set("n", 2)
    assert live.error == "" and live.views["a"].data[0].y == (1, 2)
    assert live.widget.panel["views"] == [["a", "A"]]


# ---- the explorers -------------------------------------------------------------------------------


def marks(figure: go.Figure) -> int:
    return sum(shape.type == "rect" for shape in figure.layout.shapes)


def test_evidence_a_click_in_one_view_selects_in_all() -> None:
    live = Live(EXPLORERS["evidence"])
    trajectory = make_trajectory()
    link = live.views["flow"].data[0].link
    names = live.views["flow"].data[0].node.label
    target = next(n for n in range(len(link.target)) if "Where does Ned" in names[link.target[n]])
    live.click("flow", 0, [target])
    assert live.error == "" and live.state["selected"].startswith("question ")
    question = int(live.state["selected"].split()[1]) - 1
    assert "Where does Ned" in trajectory.questions[question].question.text
    retrieved = {found.item_id for found in trajectory.questions[question].retrieved}
    assert len(live.views["trail"].data[0].y) == len(retrieved)
    assert marks(live.views["heatmap"]) == len(
        figures.evidence_parts(
            dataclasses.replace(trajectory, questions=(trajectory.questions[question],))
        )
    )
    assert marks(live.views["timeline"]) == len(retrieved)
    assert live.views["heatmap"].data[2].selectedpoints == (question,)
    strong = [color for color in live.views["flow"].data[0].link.color if color.endswith(STRONG)]
    assert 0 < len(strong) < len(link.target)
    live.click("heatmap", 3, [2])
    assert live.state["selected"] == "step 3" and marks(live.views["heatmap"]) > 0
    marker = next(
        n for n, trace in enumerate(live.views["timeline"].data) if trace.name == "INSERT"
    )
    live.click("timeline", marker, [0])
    assert live.state["selected"].startswith("item ") and live.error == ""
    assert marks(live.views["timeline"]) == 1


def test_evidence_link_and_node_numbers_never_meet() -> None:
    """Incident: plotly says only the number of what was clicked, be it a node or a link."""
    trace = EXPLORERS["evidence"].figures()["flow"].data[0]
    used = {*trace.link.source, *trace.link.target}
    assert min(used) >= len(trace.link.value)
    assert all(trace.node.label[number] for number in used)


def test_trail_is_the_evidence_of_the_rewards() -> None:
    trajectory = make_trajectory()
    for settings in (RewardSettings(), RewardSettings(credited="used", attribution="lineage")):
        for j, answered in enumerate(trajectory.questions):
            figure = figures.evidence_trail(trajectory, settings, f"question {j + 1}", max_rows=99)
            parts = [
                part for part in figures.evidence_parts(trajectory, settings) if part.question == j
            ]
            earned = sum(part.share for part in parts) * (answered.score or 0)
            assert sum(figure.data[0].x) == pytest.approx(earned, abs=1e-3)
            used = [text for text in figure.layout.yaxis.ticktext if "(used)" in text]
            assert {text.split("#")[1].split()[0] for text in used} == set(answered.used)


def test_memory_player_opens_where_there_is_something_to_see() -> None:
    """Incident: it opened at the last step, where nothing but the sum of all steps is seen."""
    trajectory = make_trajectory()
    opened = explorers.memory_player(trajectory).settle({})["step"]
    changes = [
        bool(one.delta.removed or one.delta.evicted)
        or any(len(item.lineage) > 1 for item in one.delta.written)
        for one in trajectory.steps
    ]
    assert changes[opened - 1] and not any(changes[: opened - 1])
    inserts = dataclasses.replace(trajectory, steps=trajectory.steps[:1])
    assert explorers.memory_player(inserts).settle({})["step"] == 1
    unwritten = dataclasses.replace(trajectory, steps=())
    assert explorers.memory_player(unwritten).settle({})["step"] == 0


def test_the_card_of_a_question_says_what_became_of_it() -> None:
    trajectory = make_trajectory()
    stages = failure_stages(trajectory)
    explorer = EXPLORERS["evidence"]
    for j, (answered, stage) in enumerate(zip(trajectory.questions, stages, strict=True), 1):
        card = explorer.figures(selected=f"question {j}")["question"]
        rows = {row["entry"]: row for row in figures.figure_table(card) if row["series"] == "text"}
        assert answered.question.text in rows["question"]["note"]
        assert rows["accepted answers"]["note"] == " | ".join(answered.question.answers)
        for rank, found in enumerate(answered.retrieved, 1):
            assert rows[f"rank {rank}"]["note"].startswith(f"#{found.item_id} ")
        used = {row["entry"] for row in figures.figure_table(card) if row["series"] == "used"}
        assert len(used) == len(answered.used or ())
        if stage is not None and stage.stage != "answered":
            assert stage.reason in rows["failure stage"]["note"]
            assert STAGES[stage.stage] in card.layout.title.text
    every = explorer.figures(selected="")["question"]
    lines = [row for row in figures.figure_table(every) if row["series"] != "text"]
    assert len(lines) == len(trajectory.questions)
    few = figures.question_card(trajectory, max_rows=2)
    assert "(2 shown, failed ones first)" in few.layout.meta["caption"]
    assert all(row["series"] != "answered" for row in figures.figure_table(few))


def test_memory_player_shows_what_each_step_did() -> None:
    trajectory = make_trajectory()
    hits = {
        found.item_id
        for one in (
            *trajectory.questions,
            *(asked for step in trajectory.steps for asked in step.chunk_questions),
        )
        for found in one.retrieved
    }
    for step in range(trajectory.num_steps + 1):
        figure = figures.memory_state(trajectory, step)
        shown = {trace.name: len(trace.x) for trace in figure.data}
        assert list(shown) == list(MEMORY_STATES)
        alive = trajectory.memory_at(step)
        gone = shown["deleted at this step"] + shown["evicted at this step"]
        assert sum(shown.values()) - gone == len(alive)
        if step:
            delta = trajectory.steps[step - 1].delta
            assert shown["deleted at this step"] == len(delta.removed)
            assert shown["evicted at this step"] == len(delta.evicted)
            written = {item.item_id for item in delta.written}
            idle = [item for item in alive if item.item_id not in hits | written]
            assert shown["kept, never retrieved"] == len(idle)
            names = [style.plain(text) for text in figure.layout.yaxis.ticktext]
            signs = Counter(name[0] for name in names if name[0] in "+~−×")
            updated = sum(len(item.lineage) > 1 for item in delta.written)
            kinds = len(delta.written) - updated, updated, len(delta.removed), len(delta.evicted)
            assert tuple(signs[sign] for sign in "+~−×") == kinds
            [page] = figure.layout.annotations
            chunk = " ".join(trajectory.steps[step - 1].chunk.text.split())
            assert chunk in style.plain(page.text) and page.text.count("UPDATE") == updated
    assert figures.memory_state(trajectory, 6, max_items=2).layout.yaxis.tickvals == (0, 1)
    with pytest.raises(ValueError, match="outside 0..6"):
        figures.memory_state(trajectory, 7)


def test_what_if_shows_the_rewards_and_advantages_of_the_library() -> None:
    group = make_group()
    figures = explorers.what_if_explorer(group).figures(
        beta=0.25, w1=0.2, credited="used", rollout=1
    )
    settings = RewardSettings(beta=0.25, w1=0.2, credited="used")
    totals = [[reward.total for reward in hybrid_reward(one, settings)] for one in group]
    assert list(figures["rewards"].data[2].y) == pytest.approx(totals[1], rel=1e-3)
    after = figures["advantages"].data[2].y
    expected = [row[step] for step in range(6) for row in group_relative(totals)]
    assert list(after) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    outcome = [[outcome_reward(one)] * 6 for one in group]
    before = [row[step] for step in range(6) for row in group_relative(outcome)]
    assert list(figures["advantages"].data[1].y) == pytest.approx(before, rel=1e-3, abs=1e-3)


def test_what_if_opens_at_a_step_without_which_an_answer_changes() -> None:
    """Incident: it opened at a step that no answer rested on, with numbers only."""
    from finemem_lib.credit.replay import Replayer

    group, agent = played_group()
    state = what_if_lab().settle({})
    one, step = group[state["rollout"]], state["step"]
    questions = [answered.question for answered in one.questions]
    [scores] = Replayer(one, agent).ask([(questions, frozenset({step}))])
    changed = [
        number
        for number, (answered, score) in enumerate(zip(one.questions, scores, strict=True))
        if answered.score != score
    ]
    assert changed
    story = what_if_lab().figures()["story"]
    shown = story.data[0].text[2].replace("<br>", " ")
    assert any(
        style.label(one.questions[n].question.text, story_figures.LINE) in shown for n in changed
    )
    assert list(what_if_lab().figures())[0] == "story"
    for rollout in range(3):
        for step in range(1, 7):
            figure = what_if_lab().figures(rollout=rollout, step=step)["story"]
            assert f"Without step {step}, " in figure.layout.meta["caption"]


def test_what_if_opens_at_the_most_evidence_without_a_reader() -> None:
    group, _ = played_group()
    state = explorers.what_if_explorer(group).settle({})
    shares = [evidence_contribution(one) for one in group]
    assert shares[state["rollout"]][state["step"] - 1] == max(max(row) for row in shares)
    unscored = [
        dataclasses.replace(one, questions=tuple(
            dataclasses.replace(a, score=None) for a in one.questions
        ))
        for one in group
    ]  # fmt: skip
    assert explorers.what_if_explorer(unscored).settle({})["step"] == 1


def test_what_if_reads_for_its_story_only_what_it_needs() -> None:
    group, agent = played_group()
    counting = Counting(agent)
    explorer = explorers.what_if_explorer(group, agent=counting)
    opened = len(counting.read_again)
    assert 0 < opened <= 2 * len(group[0].questions)  # not every step of every rollout
    explorer.figures()
    assert len(counting.read_again) == opened
    explorer.figures(beta=0.25)
    assert len(counting.read_again) == opened


def test_what_if_credits_the_first_k_items_only() -> None:
    explorer = explorers.what_if_explorer([worked_example()])
    one, two = (explorer.figures(k=k, beta=1.0, step=1)["card"].data[0].x for k in (1, 2))
    assert one[1] == 0.5 and two[1] == 0.25


@pytest.mark.parametrize("rule", [explorers.what_if.FINE_MEM, "eara", "eara-used"])
def test_the_card_adds_up_to_the_reward(rule: str) -> None:
    explorer = EXPLORERS["what_if"]
    for step in range(1, 7):
        for rollout in range(3):
            card = explorer.figures(rule=rule, step=step, rollout=rollout)["card"]
            terms, results = card.data
            total = sum(value for value in terms.x if value is not None)
            assert total == pytest.approx(results.x[-2], abs=2e-3)


def test_the_card_counts_the_rollouts_of_every_rule() -> None:
    """Incident: a rule that gives advantages was said to be one "among 0 rollouts"."""
    explorer = EXPLORERS["what_if"]
    rules = [value for _, value in explorer.controls[2].options]
    kinds = {RULES[rule].gives for rule in rules if rule in RULES}
    assert kinds == {"reward", "advantage"}
    for rule in rules:
        assert "among 3 rollouts" in explorer.figures(rule=rule)["card"].layout.meta["caption"]


def test_rules_that_need_the_reader_are_offered_with_it_only() -> None:
    group, agent = played_group()
    without, with_reader = (
        explorers.what_if_explorer(group),
        explorers.what_if_explorer(group, agent=agent),
    )
    rules = [[value for _, value in one.controls[2].options] for one in (without, with_reader)]
    assert "step-loo" not in rules[0] and "step-loo" in rules[1]
    live = Live(with_reader)
    for rule in rules[1]:
        live.set("rule", rule)
        assert live.error == ""


@functools.cache
def played_group() -> tuple[list[Any], Any]:
    """Three rollouts on which no control does nothing by chance, and the agent that answered."""
    from finemem_lib.data.planted import StreamSettings, planted_stream
    from finemem_lib.managers.model import make_manager
    from finemem_lib.managers.rollout import RolloutSettings, play
    from finemem_lib.readers.extractive import reader_for

    instance = planted_stream(3, StreamSettings(num_chunks=6, people=2))
    agent = reader_for([instance])
    [group] = play(
        [instance], make_manager("random"), RolloutSettings(num_generations=3, top_k=3), agent, 0
    )
    # An item updated on the way tells attributions apart, a question without items `unretrieved`.
    first = group[0].questions[0]
    guessed = dataclasses.replace(
        first, retrieved=(), used=(), score=1.0, answer=first.question.answers[0]
    )
    return [
        dataclasses.replace(group[0], questions=(guessed, *group[0].questions[1:])),
        *group[1:],
    ], agent


class Counting:
    """An agent that counts the readings it is asked for."""

    def __init__(self, agent: Any) -> None:
        self.agent, self.name, self.settings, self.query = (
            agent,
            agent.name,
            agent.settings,
            agent.query,
        )
        self.read_again: list[Any] = []

    def read(self, tasks: Any) -> Any:
        self.read_again += tasks
        return self.agent.read(tasks)


SWITCHES = [
    {},
    {"beta": 0.25},
    {"w1": 0.2},
    {"w2": 0.3},
    {"attribution": "creation"},
    {"attribution": "lineage"},
    {"credited": "used"},
    {"scale": "batch"},
    {"scale": "none"},
    {"k": 1},
    {"beta": 1.0, "credited": "used", "k": 2, "scale": "none"},
]
START = RewardSettings(unretrieved="drop")
RULE_NAMES = [explorers.what_if.FINE_MEM, *(name for name in RULES if name != "potential")]


@functools.cache
def what_if_lab() -> Explorer:
    group, agent = played_group()
    return explorers.what_if_explorer(group, START, agent=agent)


def by_the_library(rule: str, group: list[Any], agent: Any, switches: dict[str, Any]) -> Any:
    """Rewards (None: it gives advantages) and advantages, with nothing of the explorer."""
    kept = {name: value for name, value in switches.items() if name not in ("scale", "k")}
    settings, scale = dataclasses.replace(START, **kept), switches.get("scale", "group")
    if "agent" not in (RULES[rule].arguments if rule in RULES else ()):
        group = [
            dataclasses.replace(
                one,
                questions=tuple(
                    dataclasses.replace(a, retrieved=a.retrieved[: switches.get("k", 3)])
                    for a in one.questions
                ),
            )
            for one in group
        ]
    if rule == explorers.what_if.FINE_MEM:
        paid = [[reward.total for reward in hybrid_reward(one, settings)] for one in group]
        return paid, group_relative(paid, scale)
    offered: dict[str, Any] = {}
    if rule.startswith("eara"):
        offered = {
            name: getattr(settings, name)
            for name in ("beta", "attribution", "credited", "unretrieved")
        }
    if rule.startswith("evidence-"):
        offered = {"attribution": settings.attribution}
    if "agent" in RULES[rule].arguments:
        offered["agent"] = Counting(agent)  # `assign` makes an own memo for what is none
    if "group" in RULES[rule].arguments:
        offered["group"] = group
    if "scale_rewards" in inspect.signature(RULES[rule].function).parameters:
        offered["scale_rewards"] = scale
    given = [
        assign(rule, one, **offered).credit
        if "agent" in offered  # knows what was read
        else RULES[rule].function(one, **offered)
        for one in group
    ]
    return (given, group_relative(given, scale)) if RULES[rule].gives == "reward" else (None, given)


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_what_if_is_the_library_for_every_rule_and_switch(rule: str) -> None:
    group, agent = played_group()
    assert rule in [value for _, value in what_if_lab().controls[2].options]
    for switches in SWITCHES:
        paid, advantages = by_the_library(rule, group, agent, switches)
        figures = what_if_lab().figures(rule=rule, rollout=1, **switches)
        shown = figures["advantages"].data[2].y
        expected = [row[step] for step in range(6) for row in advantages]
        assert list(shown) == pytest.approx(
            [value for value in expected if value is not None], rel=1e-3, abs=1e-3
        )
        shown = figures["rewards"].data[2].y
        wanted = [] if paid is None else [value for value in paid[1] if value is not None]
        assert list(shown) == pytest.approx(wanted, rel=1e-3, abs=1e-3)
    assert paid is not None or "directly" in figures["rewards"].layout.meta["caption"]


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_controls_that_a_rule_does_not_read_are_greyed_out_and_move_nothing(rule: str) -> None:
    """Incident: with most rules all but two controls did nothing, and nothing said so."""
    live = Live(what_if_lab())
    live.set("rule", rule)
    moving = {
        "beta": 0.25,
        "w1": 0.2,
        "w2": 0.3,
        "k": 1,
        "attribution": "creation",
        "credited": "used",
    }
    group, agent = played_group()
    first = by_the_library(rule, group, agent, {})
    for name, value in moving.items():
        moved = by_the_library(rule, group, agent, {name: value}) != first
        idle = live.controls[name].disabled
        assert not (moved and idle), name
        if rule == explorers.what_if.FINE_MEM or (rule == "eara" and name not in ("w1", "w2")):
            assert moved and not idle, name
    assert not live.controls["scale"].disabled and not live.controls["rule"].disabled
    caption = live.views["card"].layout.meta["caption"]
    reads = ["β" if name == "beta" else name for name in moving if not live.controls[name].disabled]
    assert rule == explorers.what_if.FINE_MEM or (
        f"it reads {', '.join([*reads, 'scale_rewards'])} only." in caption
    )
    live.set("rule", explorers.what_if.FINE_MEM)
    assert not any(widget.disabled for widget in live.controls.values())


def test_nothing_is_read_or_computed_again_for_what_a_rule_does_not_read(monkeypatch) -> None:
    """Incident: β, which they do not take, cost the rules that replay steps seconds per move."""
    group, agent = played_group()
    counting = Counting(agent)
    explorer = explorers.what_if_explorer(group, agent=counting)
    monkeypatch.setattr(
        counterfactual, "Replayer", lambda *_: pytest.fail("replayed by each rule anew")
    )
    for rule in ("step-loo", "step-shapley", "owen", "evidence-shapley"):
        explorer.figures(rule=rule)
    assert counting.read_again
    asked = [
        (task.question, *(content for _, content in task.items), task.written)
        for task in counting.read_again
    ]
    assert len(set(asked)) == len(asked)  # rules that ask the same share the answers
    alone = Counting(agent)
    explorers.what_if_explorer(group[:1], agent=alone).figures(rule="step-loo")
    held = {item.item_id: item.content for item in group[0].final_memory()}
    known = {
        (answered.question.text, *(held[found.item_id] for found in answered.retrieved))
        for answered in group[0].questions
    }
    assert alone.read_again and not known & {
        (task.question, *(content for _, content in task.items)) for task in alone.read_again
    }
    times = Counter()
    for rule in RULE_NAMES:
        if rule in RULES:
            counted = dataclasses.replace(RULES[rule], function=_counting(rule, times))
            monkeypatch.setitem(RULES, rule, counted)
    for rule in RULE_NAMES:
        for switches in ({}, {"beta": 0.25}, {"w1": 0.2}, {"step": 2}, {"rollout": 1}):
            explorer.figures(rule=rule, **switches)
    reads_beta = {"eara", "eara-used"}
    for rule in RULE_NAMES[1:]:
        already = rule in (
            "step-loo",
            "step-shapley",
            "owen",
            "evidence-shapley",
            "uniform-split",
            "outcome-broadcast",
        )
        assert times[rule] == len(group) * (0 if already else 1 + (rule in reads_beta)), rule
    assert len(counting.read_again) - len(asked) <= sum(  # evidence-loo asked of fewer sets only
        len(answered.retrieved) for one in group for answered in one.questions
    )


@pytest.mark.parametrize("rule", explorers.what_if.SAMPLED)
def test_values_that_take_seconds_are_first_estimated(rule: str, monkeypatch) -> None:
    """Incident: the first choice of the Owen values took 5.4 s."""
    monkeypatch.setattr(explorers.what_if, "MANY_SETS", 0)
    group, agent = played_group()
    explorer = explorers.what_if_explorer(group, START, agent=agent)
    function, seeds = RULES[rule].function, (0, 1)
    expected = [
        sum(row) / 2
        for row in zip(
            *(function(group[1], agent=agent, permutations=1, seed=seed) for seed in seeds),
            strict=True,
        )
    ]
    for orders in (2, 4, None):
        figures = explorer.figures(rule=rule, rollout=1, orders=orders)
        shown = list(figures["rewards"].data[2].y)
        assert sum(shown) == pytest.approx(sum(expected), abs=5e-3)  # every order shares it out
        caption = figures["card"].layout.meta["caption"]
        assert (f"Sampled, {orders} orders: " in caption and "±" in caption) == (orders is not None)
        assert ("sampled" in figures["rewards"].data[2].name) == (orders is not None)
        if orders == 2:
            assert shown == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert shown == pytest.approx(function(group[1], agent=agent), rel=1e-3, abs=1e-3)
    assert explorer.settle({"rule": rule})["orders"] == 2
    live = Live(explorer)
    live.set("rule", "step-loo")
    assert live.controls["orders"].disabled
    monkeypatch.undo()
    names = [control.name for control in explorers.what_if_explorer(group, agent=agent).controls]
    assert "orders" not in names  # few steps: exact at once


def _counting(rule: str, times: Counter) -> Any:
    function = RULES[rule].function

    @functools.wraps(function)
    def counted(*arguments: Any, **settings: Any) -> Any:
        times[rule] += 1
        return function(*arguments, **settings)

    return counted


def test_a_group_is_computed_once_for_all_its_rollouts(monkeypatch) -> None:
    """Incident: gigpo took 600 ms a move, because each of 8 rollouts worked out all 8 again."""
    group, _ = played_group()
    calls = Counter()
    for name in ("states_seen", "valid_and_short"):
        function = getattr(group_rules, name)
        monkeypatch.setattr(
            group_rules,
            name,
            lambda *a, name=name, function=function: (calls.update([name]), function(*a))[1],
        )
    explorer = explorers.what_if_explorer(group)
    for rule in ("gigpo", "attributed-dense"):
        explorer.figures(rule=rule)
    steps = sum(bool(step.chunk_questions) for one in group for step in one.steps)
    assert calls == {"states_seen": len(group), "valid_and_short": steps}


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_rollouts_taken_together_get_what_each_gets_alone(scale: str) -> None:
    group, _ = played_group()
    together = group_rules.CachedGroup(group)
    for rule in ("mt-grpo", "gigpo", "hindsight", "attributed-dense"):
        for one in group:
            shared, alone = (
                RULES[rule].function(one, group=each, scale_rewards=scale)
                for each in (together, list(group))
            )
            assert shared == alone
    for one in group:
        for step, state in zip(one.steps, group_rules.states_seen(one), strict=True):
            before = sorted(one.memory_at(step.step - 1), key=creation_key)
            assert state == (step.chunk.text, *(item.content for item in before))


def test_hover_texts_that_no_cell_has_room_for_are_not_made() -> None:
    """Incident: half of the 55 ms that a choice of rewards took for 8 rollouts of 200 steps."""
    large = [
        dataclasses.replace(make_trajectory(3, 60), instance_id="one", rollout=number)
        for number in range(3)
    ]
    compared = figures.rollout_compare(figures.rollout_groups([large])[0])
    assert compared.data[0].customdata is None


@pytest.mark.parametrize("rule", ["mt-grpo", "gigpo", "hindsight", "attributed-dense"])
def test_rules_that_give_advantages_say_so_where_rewards_would_stand(rule: str) -> None:
    """Incident: an empty box, "the reward moves by 0 on average over 0 steps"."""
    figures = what_if_lab().figures(rule=rule, rollout=1)
    said = f"The rule {rule} gives the advantages of rollout 2 directly"
    meta = figures["rewards"].layout.meta
    assert meta["caption"].startswith(said) and said in meta["alt"]
    [note] = figures["rewards"].layout.annotations
    assert said in note.text.replace("<br>", " ")
    card = figures["card"]
    assert card.layout.xaxis.title.text == "value (advantage)"
    shown = [trace.name for trace in card.data if trace.showlegend]
    assert shown == [trace.name for trace in card.data if any(x is not None for x in trace.x)]


def test_the_formula_of_every_rule_stands_whole_in_its_card() -> None:
    """Incident: "(1/n) sum_j ([t in E_j] + lambda [t wrote..." was cut, and nowhere whole."""
    for rule in RULE_NAMES[1:]:
        card = what_if_lab().figures(rule=rule)["card"]
        whole = " ".join(style.plain(text) for text in card.layout.yaxis.ticktext)
        assert RULES[rule].formula in whole and RULES[rule].formula in card.layout.meta["alt"]
        assert all(
            len(line) <= 60
            for text in card.layout.yaxis.ticktext
            for line in style.plain(text.replace("<br>", "\n")).split("\n")
        )


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_the_numbers_of_the_card_come_to_its_values(rule: str, scale: str) -> None:
    """Incident: "= -0.064, scaled -0.2645" did not say by what."""
    worked = {
        explorers.what_if.FINE_MEM,
        "eara",
        "eara-used",
        "csr",
        "outcome-broadcast",
        "uniform-split",
        "mt-grpo",
        "gigpo",
        "step-loo",
    }
    for rollout, step in ((0, 1), (1, 4), (2, 6)):
        card = what_if_lab().figures(rule=rule, scale=scale, rollout=rollout, step=step)["card"]
        values = [
            next(x for x in pair if x is not None) if any(x is not None for x in pair) else None
            for pair in zip(card.data[0].x, card.data[1].x, strict=True)
        ]
        told = card.layout.meta["alt"].partition(": ")[2].removesuffix(".")
        lines = [line.rpartition(" is ")[2] for line in told.split("; ")]
        rows = [
            (line.replace("×", "*"), value)
            for line, value in zip(lines, values, strict=True)
            if value is not None
        ]
        for numbers, value in rows:
            assert eval(numbers, {}) == pytest.approx(value, rel=2e-3, abs=2e-4), numbers
        if rule in worked and values[-1] is not None:
            assert len(rows) > 2 or re.search(r" [-/] ", rows[0][0])
        if rule in RULES and RULES[rule].gives == "reward" and values[-1] is not None:
            assert ("0.0001" in rows[-1][0]) == (scale != "none")


def test_rewards_are_compared_with_rewards_of_the_same_sum() -> None:
    """Incident: "the reward moves by 0.796" at every β, r_global against a total led by format."""
    group, _ = played_group()
    moved = []
    for beta in (0.25, 0.5, 1.0):
        figure = what_if_lab().figures(beta=beta, rollout=1)["rewards"]
        assert sum(figure.data[1].y) == pytest.approx(sum(figure.data[2].y), abs=5e-3)
        caption = figure.layout.meta["caption"]
        assert explorers.what_if.EVEN_SPLIT in caption
        moved.append(float(re.search(r"moves by ([\d.]+)", caption)[1]))
    assert moved[0] < moved[1] < moved[2]
    assert moved[2] == pytest.approx(4 * moved[0], rel=0.05)
    eara = what_if_lab().figures(rule="eara-used", rollout=1)["rewards"].data[1].y
    assert list(eara) == pytest.approx([outcome_reward(group[1]) / 6] * 6, rel=1e-3)
    before = what_if_lab().figures(rule="csr", before=explorers.what_if.INITIAL)["rewards"]
    assert "compare the advantages" in before.layout.meta["caption"]


def test_a_cut_that_takes_every_used_item_is_said() -> None:
    """Incident: k = 1 paid every step alike, as if nothing had been found, and did not say so."""
    one = worked_example()
    asked = dataclasses.replace(one.questions[0], used=("2",))
    explorer = explorers.what_if_explorer([dataclasses.replace(one, questions=(asked,))])
    for wanted, told in (
        ({"credited": "used", "k": 1}, True),
        ({"credited": "used"}, False),
        ({"k": 1}, False),
        ({"rule": "eara-used", "k": 1}, True),
        ({"rule": "outcome-broadcast", "credited": "used", "k": 1}, False),
    ):
        caption = explorer.figures(**wanted)["card"].layout.meta["caption"]
        assert (
            "k = 1 cuts away every used item of 1 of 1 questions: their evidence is spread "
            "over all steps" in caption
        ) == told


def test_a_rule_that_reads_again_is_never_shown_fewer_items_than_were_scored() -> None:
    """Incident: with k = 1 it took the score of two items for that of the first, a distractor."""
    from finemem_lib.lesson.cases import disagreement
    from finemem_lib.readers.extractive import reader_for

    played = disagreement()
    one = dataclasses.replace(
        played,
        questions=tuple(
            dataclasses.replace(answered, retrieved=answered.retrieved[::-1])
            for answered in played.questions
        ),
    )
    explorer = explorers.what_if_explorer([one, one], agent=reader_for([one]))
    paid, cut = (
        str([view.to_plotly_json()["data"] for view in explorer.figures(**state).values()])
        for state in ({"rule": "evidence-loo"}, {"rule": "evidence-loo", "k": 1})
    )
    assert cut == paid


def test_what_if_refuses_rollouts_of_different_instances() -> None:
    with pytest.raises(ValueError, match="2 trajectories of 2 instances, expected the rollouts"):
        explorers.what_if_explorer([make_trajectory(), worked_example()])
    with pytest.raises(ValueError, match="0 trajectories"):
        explorers.what_if_explorer([])


# ---- untrusted text ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLORERS)
@pytest.mark.parametrize("poison", [POISON, LONG])
def test_text_from_data_stays_text(name: str, poison: str) -> None:
    explorer = make_explorers(poison)[name]
    live = Live(explorer)
    for control in explorer.controls:
        assert all(len(text) <= 60 for text, _ in control.choices(live.state))
    for figure in explorer.figures().values():
        spec = json.loads(figure.to_json())
        clicks = spec["layout"].pop("meta").get("clicks", {})
        assert len(json.dumps(clicks)) < 10_000
        for text in strings(spec):
            assert "<" not in OWN_MARKUP.sub("", text) and "$" not in text
            assert max(map(len, text.split("<br>"))) < 130
    tell(live, {"table": True})
    for view in live.views:
        assert (
            "<script" not in tell(live, {"view": view})["table"]
        )  # the page shows the rest as text


# ---- the static form -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPLORERS)
def test_frames_are_the_states(name: str) -> None:
    assert_frames_are_the_states(EXPLORERS[name])


def test_linked_states_are_framed_once_for_each_view_that_tells_them_apart() -> None:
    explorer = drill()
    assert_frames_are_the_states(explorer)
    run, step, token = explorer.static_figures()
    assert [len(figure.frames) for figure in (run, step, token)] == [2, 4, 4]
    assert [one.label for one in run.layout.sliders[0].steps] == ["run first", "run second"]
    assert [one.label for one in step.layout.sliders[0].steps][2] == "run second, step 2"
    assert run.layout.sliders[0].active == 1 and run.layout.meta["start"] == 3
    assert run.layout.meta["levels"] == ["run", "step", "token"]
    assert run.layout.meta["paths"][2] == ["run first", "step 2", "token 2"]
    assert run.layout.meta["clicks"] == {"0": [0, 3]}
    assert step.layout.meta["clicks"] == {"0": [3, None]}  # token 2 of run bb has no frame
    shown = [
        at_frame(json.loads(step.to_json()), number)["layout"]["meta"]["clicks"]
        for number in step.layout.meta["states"]
    ]
    assert shown[1] == shown[2] == {"0": [1, 2]}
    assert run.layout.meta["caption"] == (
        f"Runs. Without a kernel: left out 3 of 8 (token); fixed colour: red. {SEE_ALL}"
    )
    assert step.layout.meta["caption"] == "Steps."


def test_a_toy_episode_is_whole_without_a_kernel_and_a_larger_one_says_what_is_left_out() -> None:
    """Incident: with 40 frames in all, items beyond the 22nd selection did nothing."""

    def episode(questions: int, items: int) -> Any:
        one = make_trajectory()
        have = {item.item_id for step in one.steps for item in step.delta.written}
        template = one.final_memory()[0]
        more = tuple(
            dataclasses.replace(template, item_id=str(900 + number))
            for number in range(items - len(have))
        )
        delta = dataclasses.replace(one.steps[5].delta, written=one.steps[5].delta.written + more)
        last = dataclasses.replace(one.steps[5], delta=delta)
        return dataclasses.replace(
            one,
            steps=(*one.steps[:5], last),
            questions=tuple(
                one.questions[number % len(one.questions)] for number in range(questions)
            ),
        )

    toy_size = explorers.evidence_explorer(episode(12, 12))
    assert len(static_states(toy_size)) == len(toy_size.controls[0].options) == 1 + 12 + 6 + 12
    card = explorers.evidence_explorer(episode(20, 40)).static_figures()[0]
    assert len(card.layout.sliders[0].steps) == 1 + 16 + 6 + 12
    assert card.layout.meta["caption"].endswith(
        f" Without a kernel: left out 4 of 20 (question), 28 of 40 (item). {SEE_ALL}"
    )
    whole = EXPLORERS["evidence"].static_figures()[0]
    assert "Without a kernel" not in whole.layout.meta["caption"]


def test_a_long_trajectory_opens_in_a_window_around_what_is_selected() -> None:
    trajectory = make_trajectory(num_chunks=LONG_STREAM + 30)
    explorer = explorers.evidence_explorer(trajectory)
    asked = {found.steps[-1] for one in trajectory.questions for found in one.retrieved}
    values = [value for _, value in explorer.controls[0].choices({})]
    steps = {int(value.split()[1]) for value in values if value.startswith("step ")}
    assert asked <= steps and len(steps) < trajectory.num_steps / 2
    for step in (min(steps), max(steps)):
        views = explorer.figures(selected=f"step {step}")
        rows = list(views["heatmap"].data[0].y)
        assert step in rows and len(rows) == WINDOW
        [outline] = views["overview"].layout.shapes
        assert (outline.x0, outline.x1) == (rows[0] - 0.5, rows[-1] + 0.5)
        low, high = views["timeline"].layout.xaxis.range
        assert low == rows[0] - 0.6 and high >= rows[-1]
        marks = [x for trace in views["timeline"].data[1:] for x in trace.x]
        assert marks and all(low <= x <= high for x in marks)
        assert f"Steps {rows[0]} to {rows[-1]} of" in views["heatmap"].layout.meta["caption"]
    assert_frames_are_the_states(explorer)
    assert "overview" not in EXPLORERS["evidence"].figures()


@pytest.mark.parametrize("make", [explorers.evidence_explorer, explorers.memory_player])
def test_a_stream_of_20000_steps_costs_no_more_frames_than_one_of_2000(make: Any) -> None:
    """Incident: 59 s for the evidence explorer, whose frames each held the whole stream."""
    sizes, peaks = [], []
    for num_steps in (2_000, 20_000):
        explorer = make(long_trajectory(num_steps))
        explorer.figures()  # what is worked out once for all states grows with the stream
        built: list[Any] = []

        def build(build: Any = explorer.build, built: Any = built, **state: Any) -> Any:
            built.append(state)
            return build(**state)

        counted = dataclasses.replace(explorer, build=build)
        tracemalloc.start()
        drawn = counted.static_figures()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(built) <= 21 and all(len(one.frames) <= len(built) for one in drawn)
        sizes.append(sum(len(one.to_json()) for one in drawn))
        caption = drawn[0].layout.meta["caption"]
        assert "Without a kernel: left out" in caption and caption.endswith(SEE_ALL)
        states = static_states(explorer)
        assert explorer.settle({}) in states and len(states) == len(built)
        assert "overview" in explorer.figures()
    assert sizes[1] < 400_000 and sizes[1] < 1.3 * sizes[0]
    assert peaks[1] < 12e6


def test_the_static_form_of_a_long_stream_is_its_states() -> None:
    one = long_trajectory(3_000)
    for make in (explorers.evidence_explorer, explorers.memory_player):
        assert_frames_are_the_states(make(one))


@pytest.mark.parametrize("num_steps", [6, 60, 300])
def test_the_history_of_a_memory_is_its_memory_at_every_step(num_steps: int) -> None:
    for one in (make_trajectory(num_chunks=num_steps), long_trajectory(num_steps)):
        past = memory_history(one)
        for step in range(0, num_steps + 1, max(1, num_steps // 20)):
            held = {item.item_id: item for item in one.memory_at(step)}
            assert past.there(past.ids, step) == held
            assert past.counts[step] == len(held)
            assert past.tokens[step] == sum(count_tokens(item.content) for item in held.values())
            assert past.idle[step] == sum(1 for item_id in held if not past.hits[item_id])
            shown = figures.memory_state(one, step, max_items=5)
            names = [name.lstrip("<b>+~−× ") for name in shown.layout.yaxis.ticktext]
            there = held | {i.item_id: i for i in one.memory_at(max(0, step - 1))}
            touched = {} if step == 0 else step_touches(one, step)
            expected = sorted(
                sorted(there.values(), key=creation_key),
                key=lambda item: (item.item_id not in touched, -item.last_step),
            )[:5]
            if len(past.ids) > 5:
                wanted = sorted(expected, key=creation_key)
                assert [name.split()[0] for name in names] == [f"#{w.item_id}" for w in wanted]


def step_touches(one: Any, step: int) -> set[str]:
    delta = one.steps[step - 1].delta
    return {*(item.item_id for item in delta.written), *delta.removed, *delta.evicted}


def test_what_is_remembered_of_a_trajectory_is_of_that_trajectory() -> None:
    calls = []

    @per_trajectory
    def counted(one: Any, more: int) -> int:
        calls.append(more)
        return one.num_steps + more

    first, second = make_trajectory(), make_trajectory(num_chunks=7)
    assert [counted(first, 1), counted(first, 1), counted(first, 2)] == [7, 7, 8]
    assert counted(second, 1) == 8 and calls == [1, 2, 1]
    for _ in range(3):
        counted(dataclasses.replace(first), 1)  # equal, and another
    assert len(calls) == 6


@pytest.mark.parametrize("name", EXPLORERS)
def test_static_figures_are_offline_named_small_and_the_same_every_time(name: str) -> None:
    figures = EXPLORERS[name].static_figures()
    again = make_explorers()[name].static_figures()
    total = 0
    for figure, other in zip(figures, again, strict=True):
        text = figure.to_json()
        assert text == other.to_json() and "bdata" not in text and "http" not in text
        total += len(text)
        [slider] = figure.layout.sliders
        assert len(slider.steps) == len(figure.layout.meta["states"]) >= len(figure.frames)
        assert [step.args[0][0] for step in slider.steps] == [
            figure.frames[number].name for number in figure.layout.meta["states"]
        ]
        assert figure.layout.meta["explorer"] == EXPLORERS[name].title
    assert total < 200_000


def test_clicks_of_the_static_form_name_frames() -> None:
    figures = EXPLORERS["evidence"].static_figures()
    for figure in figures:
        states = figure.layout.sliders[0].steps
        for values in figure.layout.meta["clicks"].values():
            assert all(value is None or 0 <= value < len(states) for value in values)
    flow = figures[2]
    trace = flow.data[0]
    link = next(
        n
        for n, target in enumerate(trace.link.target)
        if "Where does Ned" in trace.node.label[target]
    )
    state = flow.layout.sliders[0].steps[flow.layout.meta["clicks"]["0"][link]]
    assert "Where does Ned" in state.label


def test_a_view_that_changes_its_traces_cannot_be_framed() -> None:
    def build(n: int) -> dict[str, go.Figure]:
        return {"a": bar([1, 2]) if n < 3 else bar([1, 2]).add_scatter(x=[1], y=[1])}

    with pytest.raises(ValueError, match=r"state 'n: three' has the traces .* expected \['bar'\]"):
        toy(build).static_figures()


def test_static_controls_are_thinned_out() -> None:
    control = Control("n", "n", [(str(n), n) for n in range(101)], 30, "slider", static=5)
    assert [value for _, value in control.frames({"n": 30})] == [0, 25, 30, 50, 75, 100]
    live = dataclasses.replace(control, preferred={7, 8, 90})
    assert {7, 8, 90} < {value for _, value in live.frames({"n": 30})}
    assert len(live.frames({"n": 7})) == 5
    most = dataclasses.replace(control, preferred=range(40, 60))
    assert [value for _, value in most.frames({"n": 40})] == [40, 45, 50, 54, 59]
    menu = dataclasses.replace(control, kind="menu", static=True)
    assert len(menu.frames({"n": 0})) == explorers.explorer.MAX_FRAMES


@pytest.mark.parametrize(
    ("environment", "live"),
    [
        ({}, False),
        ({"JPY_SESSION_NAME": "x.ipynb"}, True),
        ({"VSCODE_PID": "1"}, True),
        ({"FINEMEM_EXPLORERS": "static", "JPY_SESSION_NAME": "x.ipynb"}, False),
        ({"FINEMEM_EXPLORERS": "live"}, True),
    ],
)
def test_the_form_follows_the_environment(monkeypatch, environment, live) -> None:
    for name in ("FINEMEM_EXPLORERS", "JPY_SESSION_NAME", "VSCODE_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert explorers.is_live() is live


def test_an_unknown_form_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("FINEMEM_EXPLORERS", "yes")
    with pytest.raises(ValueError, match="'yes', expected 'live' or 'static'"):
        explorers.is_live()


def test_static_show_needs_no_widgets(monkeypatch, capsys) -> None:
    monkeypatch.setenv("FINEMEM_EXPLORERS", "static")
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    explorers.show(EXPLORERS["memory_player"])
    assert "items" in capsys.readouterr().out


@pytest.fixture
def displayed(monkeypatch) -> list[Any]:
    """Bundles and widgets that were displayed, with their metadata; in a kernel of its own."""
    found: list[Any] = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda shown, raw, metadata=None: found.append((shown, metadata)),
    )
    monkeypatch.setattr(explorers.display, "_kept", {})
    monkeypatch.setenv("FINEMEM_EXPLORERS", "static")
    return found


@pytest.mark.parametrize("frames", [None, ("rule", "beta"), ()])
def test_a_live_explorer_leaves_the_outputs_of_the_static_form(
    displayed, monkeypatch, frames
) -> None:
    explorers.show(EXPLORERS["what_if"], frames=frames)
    static = displayed[:]
    displayed.clear()
    monkeypatch.setenv("FINEMEM_EXPLORERS", "live")
    explorers.show(EXPLORERS["what_if"], frames=frames)
    (note, mark), (widget, _), *below = displayed
    assert below == static and len(static) == 8
    assert mark == explorers.display.LIVE_ONLY and widget.panel["title"] == "What-if credit"
    assert note["text/html"].count(f"{' + .jp-OutputArea-child' * 8} {{") == 1


def test_figures_that_cannot_be_made_are_said_and_the_widget_is_there(
    displayed, monkeypatch
) -> None:
    def build(n: int) -> dict[str, go.Figure]:
        if n == 2:
            raise KeyError("<b>lost</b>")
        return {"a": bar([n, n])}

    monkeypatch.setenv("FINEMEM_EXPLORERS", "live")
    explorers.show(toy(build))
    [(note, _), (widget, _)] = displayed
    assert "KeyError: &#x27;&lt;b&gt;lost" in note["text/html"] and widget.panel["error"] == ""


def test_another_explorer_may_stand_for_a_live_one_without_its_kernel(
    displayed, monkeypatch
) -> None:
    large = toy(options=[(str(n), n) for n in range(1, 9)])
    monkeypatch.setenv("FINEMEM_EXPLORERS", "live")
    explorers.show(dataclasses.replace(large, without_kernel=toy()))
    _, (widget, _), *below = displayed
    assert len(widget.texts[widget.panel["controls"][0]["name"]]) == 8
    assert below[0][0][style.PLOTLY_MIME]["layout"]["meta"]["states"] == [0, 1, 2]


def test_an_explorer_shown_again_goes_on_unless_it_starts_otherwise(displayed, monkeypatch) -> None:
    monkeypatch.setenv("FINEMEM_EXPLORERS", "live")

    def panel(**control: Any) -> dict[str, Any]:
        displayed.clear()
        explorers.show(toy(**control))
        return displayed[1][0].panel

    panel()
    for message in ({"control": "n", "option": 1}, {"view": "b"}, {"table": True}):
        displayed[1][0]._handle_custom_msg(message, [])
    again = panel()
    assert again["controls"][0]["place"] == 1 and again["view"] == "b" and again["tabled"]
    other = panel(value=3)
    assert other["controls"][0]["place"] == 2 and other["view"] == "a" and not other["tabled"]


def test_frames_end_with_their_time_and_the_caption_counts_those_left_out() -> None:
    control = {"kind": "slider", "value": 2}
    for figure in toy(**control).static_figures(seconds=0):
        assert figure.layout.meta["states"] == [0] and figure.data[0].y[1] in (4, 2)
    first = toy(**control).static_figures(seconds=0)[0]
    assert first.layout.meta["caption"] == f"Sum 6. Without a kernel: fixed n: two. {SEE_ALL}"
    whole = toy(**control).static_figures(seconds=LAST_RESORT)[0]
    assert whole.layout.meta["caption"] == "Sum 6." and len(whole.layout.meta["states"]) == 3


def test_importing_the_module_loads_no_widgets() -> None:
    script = "import finemem_lib.explorers.explorer, sys; print('ipywidgets' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=LAST_RESORT,
    )
    assert done.stdout.strip() == "False"
