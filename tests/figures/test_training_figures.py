"""Figures of training: what they say of groups, episodes and tokens, and that text stays text."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics

import pytest

from finemem_lib import figures
from finemem_lib.advantages import group_relative
from finemem_lib.data.sentences import sentences
from finemem_lib.figures import style
from finemem_lib.figures.episodes import needed_sentences
from finemem_lib.figures.tokens import COLUMNS
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
    assert found.first_difference() == 2
    assert found.branches() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1],
        [0, 2, 2, 2, 2, 2],
        [0, 1, 1, 1, 1, 1],
    ]
    figure = figures.rollout_compare(found)
    assert "Their operations first differ at step 2." in figure.layout.meta["caption"]
    assert figure.data[0].text[2][1] == "C<br>S2"
    assert [round(v, 3) for v in figure.data[0].z[1]] == [round(v, 3) for v in found.advantages[1]]
    assert figure.data[0].zmid == 0 and figure.data[0].zmin == -figure.data[0].zmax
    (same,) = figures.rollout_groups([[group[0], group[0]]])
    assert same.first_difference() is None
    assert "same operations" in figures.rollout_compare(same).layout.meta["caption"]


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


def test_two_rollouts_are_compared_by_what_their_operations_did() -> None:
    group = rollouts()
    (found,) = figures.rollout_groups([group])
    figure = figures.rollout_diff(found, 0, 2)
    names = figure.layout.yaxis.ticktext
    assert names[0] == "step 1" and names[-1] == "steps 3–6"  # no answer differs, only scores
    assert {*names[1:-1]} == {"step 2"}
    assert figure.data[0].text[0] == ["the same"] * 2 and figure.data[0].z[0] == [0, 0]
    did = len(group[0].steps[1].outcomes)
    assert [row[0] for row in figure.data[0].z[1:-1]] == [-1] * did + [0] * max(0, 2 - did)
    assert [row[1] for row in figure.data[0].text[1:3]] == ["+ SKIP"] * 2
    assert "2 (+) only rollout 3" in figure.layout.meta["caption"]
    asked = (dataclasses.replace(group[1].questions[0], answer="x"), *group[1].questions[1:])
    changed = dataclasses.replace(group[1], questions=asked)
    (found,) = figures.rollout_groups([[group[0], changed]])
    answers = figures.rollout_diff(found, 0, 1)
    assert [name for name in answers.layout.yaxis.ticktext if "question" in name] == ["question 1"]
    assert "→ x " in answers.data[0].customdata[-1][1].replace("<br>", " ")
    assert "answer 1 of" in answers.layout.meta["caption"]


def test_ids_that_differ_after_the_rollouts_parted_are_no_difference() -> None:
    one = make_trajectory()
    renamed = dataclasses.replace(
        one,
        steps=tuple(
            dataclasses.replace(
                step,
                outcomes=tuple(
                    dataclasses.replace(outcome, item_id=f"9{outcome.item_id}")
                    if outcome.operation and outcome.operation.kind == "INSERT"
                    else outcome
                    for outcome in step.outcomes
                ),
            )
            for step in one.steps
        ),
    )
    (found,) = figures.rollout_groups([[one, renamed]])
    assert figures.rollout_diff(found, 0, 1).layout.yaxis.ticktext == ("steps 1–6",)


def test_a_group_shows_rewards_advantages_and_the_sign_of_every_token() -> None:
    (found,) = figures.rollout_groups([rollouts()])
    texts = [["[", '{"op":"INSERT"}', "]"]] * 3
    pushes = [[0.0, 2.0, None], [0.001, -2.0, -1.0], [0.0, 0.0, 0.0]]
    terms = ["outcome", "eara", "format", "chunk", "compression"]
    tokens, *bars, advantages = figures.group_completions(found, 2, texts, pushes, terms).data
    assert list(tokens.text) == [
        "[", "▲INSERT", "]", "[", "▼INSERT", "]", "[", "INSERT", "]",
    ]  # fmt: skip
    assert list(tokens.marker.color) == [0, 2, 0, 0.001, -2, -1, 0, 0, 0]
    rewards = [row[1] for row in found.rewards]
    for place, reward in enumerate(rewards):
        assert sum(bar.x[place] or 0 for bar in bars) == pytest.approx(reward, abs=2e-3)
    assert list(advantages.x) == [style.number(row[1]) for row in found.advantages]
    figure = figures.group_completions(found, 2, texts, pushes, terms)
    band, line = figure.layout.shapes
    assert line.x0 == pytest.approx(sum(rewards) / 3)
    assert (band.x1 - band.x0) / 2 == pytest.approx(statistics.stdev(rewards))
    assert "1 tokens go up, 2 down." in figure.layout.meta["caption"]
    dead = figures.group_completions(found, 1, texts, pushes, terms).layout.meta["caption"]
    assert ("Dead group: every rollout earned the same" in dead) == (1 in found.without_gradient())
    long = [[f"word{n}" for n in range(100)]] * 3
    cut = figures.group_completions(found, 2, long, [[0.0] * 100] * 3, terms)
    shown = len(cut.data[0].text)
    assert (
        max(cut.data[0].base) < 68
        and f"{300 - shown} tokens have no room" in (cut.layout.meta["caption"])
    )


def test_a_story_tells_the_answer_that_changes_most() -> None:
    one = make_trajectory()
    answered = [
        dataclasses.replace(a, answer="right", score=1.0, retrieved=()) for a in one.questions
    ]
    one = dataclasses.replace(one, questions=tuple(answered))
    without = [
        dataclasses.replace(a, answer=f"without {n}", score=1.0 - n / 10)
        for n, a in enumerate(answered)
    ]
    figure = figures.step_story(one, 2, without)
    read, wrote, changed = (text.split("<br>") for text in figure.data[0].text)
    assert " ".join(read).startswith(style.plain(one.steps[1].chunk.text)[:40])
    assert [line.split()[0] for line in wrote] == [
        outcome.operation.kind for outcome in one.steps[1].outcomes
    ]
    assert changed[1].endswith("right ✓ 1.00") and f"without {len(answered) - 1} " in changed[2]
    assert f"{len(answered)} of {len(answered)} answers change" in figure.layout.meta["caption"]
    same = figures.step_story(one, 2, answered)
    assert same.data[0].text[2] == "none" and "0 of" in same.layout.meta["caption"]
    unread = figures.step_story(make_trajectory(), 1)
    assert "no reasoning agent is given" in unread.layout.meta["caption"]
    assert "answer with most evidence" in unread.layout.yaxis.ticktext[2]


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


def test_every_panel_of_several_lines_has_a_legend_of_its_own() -> None:
    """Incident: INSERT stood under "reward terms"."""
    keys = ("reward", "rewards/eara/mean", "rewards/chunk/mean", "operations/A", "operations/B")
    figure = figures.training_curves([{"step": 1} | dict.fromkeys(keys, 0.5)])
    legends = {}
    for trace in figure.data:
        if trace.showlegend:
            legends.setdefault(trace.legend or "legend", []).append(trace.name)
    titles = {figure.layout[name].title.text: names for name, names in legends.items()}
    assert titles == {
        "reward terms (mean)": ["eara", "chunk"],
        "operations (per step)": ["A", "B"],
    }
    places = [figure.layout[name].y * figure.layout.height for name in legends]
    assert abs(places[0] - places[1]) >= 20 and max(places) + 20 < figure.layout.margin.b


def test_a_cell_of_which_nothing_is_known_opens_no_box() -> None:
    figure = figures.advantage_heatmap([[None, 1.0], [None, -1.0]])
    assert figure.data[0].hoverongaps is False


# Tokens.


def view(tokens, values, **settings):
    one = figures.ColouredCompletion(tokens[0] if tokens else "", tuple(tokens), tuple(values))
    return figures.completion_view([one], "advantage A", **settings)


def test_tokens_are_coloured_by_their_value_around_zero_and_the_sign_is_underlined() -> None:
    found = view(["a", "b", "c", "d", "e"], [1.0, -1.0, 0.0, None, 0.25])
    [boxes] = found.data
    assert boxes.marker.color == (1.0, -1.0, 0.0, "white", 0.25)
    scale = found.layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-1, 1)
    assert scale.colorscale[0][1] == "rgb(127,59,8)" and scale.colorscale[-1][1] == "rgb(45,0,75)"
    assert boxes.text == ("a", "<u>b</u>", "c", "d", "e")
    assert "2 tokens are above 0 and 1 below" in found.layout.meta["caption"]
    rows = figures.figure_table(found)
    assert [row["advantage A"] for row in rows] == [1.0, -1.0, 0.0, "not known", 0.25]
    assert [row["token"] for row in rows] == [1, 2, 3, 4, 5]


def test_boxes_stand_side_by_side_in_lines_that_wrap() -> None:
    texts = ["one", "漢字", "w" * 500, " ", "", "\n"] * 60
    found = figures.completion_view(
        [figures.ColouredCompletion(name, tuple(texts), (0.5,) * 360) for name in "ab"], "A"
    )
    ends: dict[int, int] = {}
    for boxes in found.data:
        for base, width, line in zip(boxes.base, boxes.x, boxes.y, strict=True):
            assert base == ends.get(line, 0)
            ends[line] = base + width
        assert list(boxes.y) == sorted(boxes.y)
    assert max(ends.values()) <= COLUMNS
    headings = {one.y for one in found.layout.annotations}
    assert sorted({*ends} | headings) == list(range(max(ends) + 1)) and not headings & {*ends}
    assert dict(zip(texts, found.data[0].x, strict=False)) == {
        "one": 4, "漢字": 5, "w" * 500: 28, " ": 2, "": 2, "\n": 2,
    }  # fmt: skip


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
    found = view(HOSTILE, [0.5] * len(HOSTILE))
    text = found.to_json()
    for own in strings(json.loads(text)):
        assert not re.search("[\ud800-\udfff\u202e]", own)
        assert not re.search(r"<(?!/?(b|u|extra)>|br>)", own) and "$" not in own
    assert len(text) < 20_000
    shown = " ".join(row["note"] for row in figures.figure_table(found))
    for own in (*HOSTILE[:2], "\\u202eright", "שלום", "😀", "$x$", "\\ud800", "a⏎b\\tc", "&lt;"):
        assert own in shown


def test_hovering_shows_what_is_known_of_a_token() -> None:
    one = figures.ColouredCompletion("", ("a", "b"), (0.5, None), (-0.125, -2.0))
    [boxes] = figures.completion_view([one], "advantage A").data
    assert boxes.customdata == (
        "a<br>advantage A +0.5<br>log-probability -0.125 nats",
        "b<br>advantage A not known<br>log-probability -2 nats",
    )


def test_long_completions_are_cut_and_say_so() -> None:
    found = view(["t"] * 50, [0.1] * 50, max_tokens=20)
    assert len(found.data[0].x) == 20
    assert "The first 20 of 50 tokens are shown." in found.layout.meta["caption"]
    assert "No token has a known value." in view([], []).layout.meta["caption"]


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
    rows = figures.figure_table(change)
    assert [row["change of log-probability (nats)"] for row in rows] == [0, 0.5, -1, 0, 0]
    assert "log-probability -2 nats" in rows[2]["note"]
    assert "whole completion -0.5 nats" in change.layout.annotations[0].text


def test_nothing_to_show_is_no_error() -> None:
    assert figures.training_curves([]).layout.meta["caption"]
    assert figures.gradient_map([]).layout.meta["caption"]
    assert figures.completion_grid([], [], "advantage A").layout.meta["caption"]
    scripted = make_trajectory().steps[:1]
    assert "No token" in figures.change_view(scripted, [()], [()], PLAIN).layout.meta["caption"]
