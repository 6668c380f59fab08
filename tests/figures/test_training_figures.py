"""Figures of training: what they say of groups, episodes and tokens, and that text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import bleach
import pytest

from finemem_lib import figures
from finemem_lib.advantages import group_relative
from finemem_lib.cli import report as report_page
from finemem_lib.data.sentences import sentences
from finemem_lib.figures.episodes import needed_sentences
from finemem_lib.figures.notes import TOKEN_CSS
from finemem_lib.figures.tokens import LEVELS
from finemem_lib.rewards import RewardSettings, hybrid_reward, outcome_reward, weighted_sum
from tests.helpers.figure_samples import OWN_MARKUP, POISON, make_trajectory, strings
from tests.helpers.rollout_samples import (
    PLAIN,
    Spelling,
    make_training_figures,
    rollouts,
    with_tokens,
)

FIGURES = make_training_figures()


@pytest.mark.parametrize("name", FIGURES)
def test_figure_says_what_it_shows_is_small_and_has_a_table(name: str) -> None:
    text = FIGURES[name].to_json()
    layout = json.loads(text)["layout"]
    assert layout["title"]["text"] and re.search(r"\d", layout["meta"]["caption"])
    assert layout["meta"]["caption"].endswith(".") and layout["meta"]["alt"].endswith(".")
    for letter in "xy":
        assert any(
            "text" in axis.get("title", {})
            for key, axis in layout.items()
            if key.startswith(f"{letter}axis")
        )
    assert len(text) < 12_000 and "bdata" not in text
    assert make_training_figures()[name].to_json() == text
    rows = figures.figure_table(FIGURES[name])
    assert rows and not any("<" in key or "&" in key for row in rows for key in row)


@pytest.mark.parametrize("name", FIGURES)
def test_untrusted_text_is_shown_literally(name: str) -> None:
    spec = json.loads(make_training_figures(POISON)[name].to_json())
    del spec["layout"]["meta"]
    for text in strings(spec):
        assert "<" not in OWN_MARKUP.sub("", text)
        assert "$" not in text
        assert not re.search("[\ud800-\udfff\u202e]", text)
    long = json.loads(make_training_figures("x" * 10_000)[name].to_json())
    assert len(json.dumps(long)) < 40_000
    assert all(len(text) < 700 for text in strings(long["layout"].pop("meta")))
    assert all(len(line) < 140 for text in strings(long) for line in text.split("<br>"))


def test_a_long_token_stays_in_its_cell_and_whole_in_the_table() -> None:
    figure = figures.completion_grid([',"op":"INSERT"}', " the"], [0.5, None], "push")
    drawn = figure.data[0].text[0]
    assert drawn[0].split("<br>") == [',"op":"I', 'NSERT"}'] and drawn[1] == "the"
    assert [row["note"] for row in figures.figure_table(figure)] == [',"op":"INSERT"}']


# Groups.


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_the_rewards_that_the_scheme_adds_up(scale: str) -> None:
    group = rollouts()
    settings = RewardSettings(w1=0.7, w2=0.2)
    (found,) = figures.rollout_groups([group], "+CSR", settings, scale)
    for rollout, terms in zip(group, found.terms, strict=True):
        for reward, term in zip(hybrid_reward(rollout, settings), terms, strict=True):
            assert list(term) == ["outcome", "format", "chunk", "compression"]
            assert term["outcome"] == reward.outcome
            assert term["chunk"] == (None if reward.chunk is None else 0.7 * reward.chunk)
            assert term["compression"] == pytest.approx(0.2 * reward.compression)
    assert [list(row) for row in found.advantages] == group_relative(found.rewards, scale)


def test_groups_of_one_update_are_one_batch_and_may_differ_in_length() -> None:
    short = [
        dataclasses.replace(one, instance_id="short", steps=one.steps[:5], questions=())
        for one in rollouts()
    ]
    long, cut = figures.rollout_groups([rollouts(), short], scale_rewards="batch")
    assert [len(row) for row in cut.advantages] == [5, 5, 5]
    joined = group_relative(
        [[*a, *b] for a, b in zip(long.rewards, cut.rewards, strict=True)], "batch"
    )
    assert [[*a, *b] for a, b in zip(long.advantages, cut.advantages, strict=True)] == joined


def test_a_group_of_two_instances_is_refused() -> None:
    one, two, _ = rollouts()
    with pytest.raises(ValueError, match="expected one instance"):
        figures.rollout_groups([[one, dataclasses.replace(two, instance_id="other")]])


def test_it_says_where_rollouts_part_and_which_did_the_same() -> None:
    group = rollouts()
    (found,) = figures.rollout_groups([[*group, dataclasses.replace(group[1], rollout=3)]])
    assert found.parted() == 2
    assert found.branches() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1],
        [0, 2, 2, 2, 2, 2],
        [0, 1, 1, 1, 1, 1],
    ]
    figure = figures.rollout_compare(found)
    assert "They part at step 2." in figure.layout.meta["caption"]
    assert figure.data[0].text[2][1] == "C · S2"
    assert [round(v, 3) for v in figure.data[0].z[1]] == [round(v, 3) for v in found.advantages[1]]
    assert figure.data[0].zmid == 0 and figure.data[0].zmin == -figure.data[0].zmax
    (same,) = figures.rollout_groups([[group[0], group[0]]])
    assert same.parted() is None
    assert "never part" in figures.rollout_compare(same).layout.meta["caption"]


def group_with(
    terms: list[dict[str, float | None]], different: bool = False
) -> figures.RolloutGroup:
    """A group of one step, by its terms."""
    group = rollouts()
    cut = [
        dataclasses.replace(one, steps=one.steps[1:2] if different else one.steps[:1])
        for one in group
    ][: len(terms)]
    rewards = tuple((weighted_sum(row),) for row in terms)
    return figures.RolloutGroup(
        tuple(cut),
        tuple((row,) for row in terms),
        rewards,
        tuple(map(tuple, group_relative(rewards))),
    )


def test_it_says_why_a_group_carries_no_gradient() -> None:
    equal = {"eara": 0.25, "format": 1.0}
    assert group_with([equal] * 2).without_gradient() == {
        1: "every rollout earned the same (EARA 0.25, format 1) for the same operations"
    }
    assert (
        group_with([equal] * 2, different=True)
        .without_gradient()[1]
        .endswith("for different operations")
    )
    cancelling = [{"eara": 0.5, "format": 1.0}, {"eara": 1.0, "format": 0.5}]
    assert group_with(cancelling).without_gradient() == {1: "EARA and format differ and cancel out"}
    unscored = [equal, {"eara": None, "format": None}]
    assert group_with(unscored).without_gradient() == {1: "1 of 2 rollouts could be scored"}
    assert group_with([equal, equal | {"eara": 0.5}]).without_gradient() == {}
    figure = figures.rollout_compare(group_with(cancelling))
    assert "EARA and format differ and cancel out" in figure.layout.meta["caption"]
    assert "no gradient" in figures.figure_table(figure)[0]["note"]


def test_the_map_counts_groups_without_gradient_by_reason() -> None:
    equal = {"eara": 0.25, "format": 1.0}
    groups = [
        group_with([equal] * 2),
        group_with([equal, equal | {"eara": 0.5}]),
        group_with([equal, {"eara": 1.0, "format": 0.25}]),
    ]
    figure = figures.gradient_map(groups)
    assert list(figure.data[1].y) == [1, 3]
    assert figure.layout.meta["caption"].startswith("2 of 3 groups carry no gradient: 1 for")
    assert [row[0] for row in figure.data[0].z] == pytest.approx([0, 0.25 / 2**0.5, 0], abs=1e-4)


def test_the_terms_of_a_step_stack_up_to_its_reward() -> None:
    (group,) = figures.rollout_groups([rollouts()])
    *bars, mean = figures.step_terms(group, 1).data
    for t, reward in enumerate(group.rewards[1]):
        assert sum(bar.y[t] or 0.0 for bar in bars) == pytest.approx(reward, abs=2e-3)
        assert mean.y[t] == pytest.approx(sum(row[t] for row in group.rewards) / 3, rel=1e-3)


# An episode before and after.


def test_an_episode_tells_what_was_kept_and_what_was_answered() -> None:
    one = make_trajectory()
    figure = figures.episode_before_after([one], [one])
    rows = figures.figure_table(figure)
    kept = [row for row in rows if row["series"] == "kept to the end"]
    lost = [row for row in rows if row["series"] == "stored, then lost"]
    final = {item.content for item in one.final_memory()}
    assert {row["note"].split(": ", 1)[1] for row in kept} == final
    assert any("deleted at step 4" in row["note"] for row in lost)
    assert any("pushed out at step 5" in row["note"] for row in lost)
    right = sum(a.score is not None and a.score >= 0.5 for a in one.questions)
    assert len([row for row in rows if row["series"] == "answer right"]) == 2 * right
    assert f"outcome reward {outcome_reward(one):.2f}" in figure.layout.meta["caption"]


def test_needed_sentences_are_the_ones_that_state_the_answers() -> None:
    one = make_trajectory()
    needed = needed_sentences(one)
    texts = {
        (step.step, place): text
        for step in one.steps
        for place, text in enumerate(sentences(step.chunk.text))
    }
    for answered in one.questions:
        question = answered.question
        assert any(
            step in question.evidence_steps and question.answers[0] in texts[step, place]
            for step, place in needed
        )
    assert len(needed) <= sum(len(a.question.evidence_steps) for a in one.questions)


def test_a_long_episode_shows_needed_sentences_first() -> None:
    one = make_trajectory(num_chunks=60)
    figure = figures.episode_before_after([one], [one], max_sentences=10)
    labels = figure.layout.yaxis.ticktext
    assert len(labels) == 10
    assert sum("◆" in text for text in labels) == min(10, len(needed_sentences(one)))
    assert "(10 of " in figure.layout.meta["caption"]


def test_two_episodes_or_none_are_refused() -> None:
    for after in ([], [make_trajectory(seed=4)]):
        with pytest.raises(ValueError, match="at least one each of the same instance"):
            figures.episode_before_after([make_trajectory()], after)


# Tokens.


class Parts(HTMLParser):
    """Collects the tags, and the spans' classes and texts, of a piece of HTML."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags, self.spans, self.attributes = set(), [], set()
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "span":
            self.spans.append([dict(attrs).get("class"), ""])

    def handle_data(self, data):
        if self.spans:
            self.spans[-1][1] += data


def view(tokens, values, **settings) -> figures.CompletionView:
    one = figures.ColouredCompletion(tokens[0] if tokens else "", tuple(tokens), tuple(values))
    return figures.completion_view([one], "advantage A", **settings)


def test_tokens_have_the_colour_that_the_legend_gives_their_value() -> None:
    found = view(["a", "b", "c", "d", "e"], [1.0, -1.0, 0.0, None, 0.26])
    spans = Parts(found.html).spans
    legend, coloured = spans[: 2 * LEVELS + 1], spans[2 * LEVELS + 1 :]
    assert [name for name, _ in legend] == [
        *(f"level-n{n} minus" for n in (4, 3, 2, 1)),
        "",
        *(f"level-p{n}" for n in (1, 2, 3, 4)),
    ]
    assert [name for name, _ in coloured] == ["level-p4", "level-n4 minus", "", "", "level-p1"]
    for name, _ in legend:
        assert not name or f".{name.split()[0]} " in found.html
    assert "2 tokens are above 0 and 1 below" in found.caption
    assert [row["advantage A"] for row in found.table] == [1.0, -1.0, 0.0, None, 0.26]


HOSTILE = (
    "<script>ran=1</script>",
    "</pre></div>",
    "\u202eright to left",
    "שלום",
    "😀",
    "$x$",
    "\ud800",
    "a\nb\tc",
    "x" * 10_000,
    "&lt;",
)


def test_hostile_tokens_are_text() -> None:
    found = view(HOSTILE, [0.5] * len(HOSTILE), title="<b>title</b>")
    parts = Parts(found.html)
    assert parts.tags <= {
        "style",
        "div",
        "p",
        "b",
        "strong",
        "pre",
        "span",
        "details",
        "summary",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    assert not {name for name in parts.attributes if name.startswith("on") or name == "style"}
    shown = [text for _, text in parts.spans]
    for text in (
        "<script>ran=1</script>",
        "</pre></div>",
        "שלום",
        "😀",
        "$x$",
        "&lt;",
        "\\u202eright to left",
        "\\ud800",
        "a⏎b\\tc",
    ):
        assert text in shown or any(other.startswith(text) for other in shown)
    assert not re.search("[\ud800-\udfff\u202e]", found.html + found.caption + found.alt)
    assert len(found.html) < 20_000
    assert json.dumps(found._repr_mimebundle_()).encode()


def test_the_report_keeps_colours_and_table() -> None:
    found = view(["a", "<i>b</i>"], [1.0, -1.0])
    cleaned = report_page.clean_html(found.html)
    before, after = Parts(found.html), Parts(cleaned)
    assert [name for name, _ in before.spans] == [name for name, _ in after.spans]
    assert "table" in after.tags and "details" in after.tags and "<i>" not in cleaned
    assert ".level-n4" in TOKEN_CSS and bleach.clean("<i>") in ("&lt;i&gt;", "<i></i>")


def test_long_completions_are_cut_and_say_so() -> None:
    found = view(["t"] * 50, [0.1] * 50, max_tokens=20)
    assert len(found.table) == 20 and "The first 20 of 50 tokens are shown." in found.caption
    assert "No token has a known value." in view([], []).caption


def test_every_token_of_a_step_has_its_text() -> None:
    step = with_tokens(make_trajectory()).steps[0]
    assert figures.step_tokens(step, PLAIN) == PLAIN.texts

    class Bytes(Spelling):
        def decode(self, ids):
            raw = b"".join("é😀x".encode()[i : i + 1] for i in ids)
            return raw.decode("utf-8", "replace")

    step = dataclasses.replace(step, completion_ids=tuple(range(7)))
    assert figures.step_tokens(step, Bytes()) == ("", "é", "", "", "", "😀", "x")
    assert figures.step_tokens(dataclasses.replace(step, completion_ids=None), PLAIN) == ()


def test_a_certain_token_is_not_pushed() -> None:
    step = with_tokens(make_trajectory()).steps[0]
    push = figures.token_push(step, (-2.0,) * 5)
    assert push[2] == 0 and push[1] == pytest.approx(-2 * (1 - 2.718281828**-2))
    assert all(value <= 0 for value in push)
    assert figures.token_push(step, (None,) * 5) == (None,) * 5
    assert figures.token_push(dataclasses.replace(step, logprobs=None), (1.0,) * 5) == (None,) * 5


def test_a_view_of_change_holds_the_numbers() -> None:
    step = rollouts()[0].steps[0]
    change = figures.change_view(
        [step], [(0.0, -1.0, -2.0, 0.0, 0.0)], [(0.0, -0.5, -3.0, 0, 0)], PLAIN
    )
    assert [row["change of log-probability (nats)"] for row in change.table] == [0, 0.5, -1, 0, 0]
    assert "whole completion -0.5 nats" in change.html


def test_nothing_to_show_is_no_error() -> None:
    assert figures.training_curves([]).layout.meta["caption"]
    assert figures.gradient_map([]).layout.meta["caption"]
    assert figures.completion_grid([], [], "advantage A").layout.meta["caption"]
    scripted = make_trajectory().steps[:1]
    assert "No token" in figures.change_view(scripted, [()], [()], PLAIN).caption
