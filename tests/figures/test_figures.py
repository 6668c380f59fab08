from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import re
import subprocess
import sys
from collections import Counter

import bs4
import plotly.graph_objects as go
import pytest

from finemem_lib import explorers, figures
from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.data.worked_example import worked_example
from finemem_lib.evaluation.credit_truth import REGIMES, Row
from finemem_lib.figures import style
from finemem_lib.figures.evidence_flow import MAX_ITEMS, MAX_STEPS, STRONG
from finemem_lib.figures.memory import MAX_POINTS
from finemem_lib.figures.notes import MAX_TABLE_ROWS
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import (
    RewardSettings,
    evidence_contribution,
    evidence_matrix,
    hybrid_reward,
)
from finemem_lib.trajectory import Trajectory
from tests.helpers.figure_samples import (
    OWN_MARKUP,
    POISON,
    make_figures,
    make_trajectory,
    strings,
)
from tests.helpers.patience import LAST_RESORT, execute

samples = functools.cache(make_figures)
FIGURES, AGAIN = make_figures(), make_figures()


@pytest.mark.parametrize("name", FIGURES)
def test_figure_says_what_it_shows(name: str) -> None:
    spec = json.loads(FIGURES[name].to_json())
    layout = spec["layout"]
    assert layout["title"]["text"]
    assert re.search(r"\d", layout["meta"]["caption"])
    assert layout["meta"]["caption"].endswith(".") and layout["meta"]["alt"].endswith(".")
    subplot_titles = [note["text"] for note in layout.get("annotations", ())]
    for letter in "xy":
        axes = [axis for key, axis in layout.items() if key.startswith(f"{letter}axis")]
        titled = [axis for axis in axes if axis.get("title", {}).get("text")]
        assert name == "evidence_sankey" or titled or subplot_titles


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_small_plain_and_the_same_every_time(name: str) -> None:
    text = FIGURES[name].to_json()
    assert len(text) < 12_000
    assert "bdata" not in text
    assert AGAIN[name].to_json() == text


@pytest.mark.parametrize("name", FIGURES)
def test_plotly_accepts_every_property_and_changes_none(name: str) -> None:
    """Incident: a figure made without plotly's checks kept a colour scale only Python knows."""
    spec = json.loads(FIGURES[name].to_json())
    for trace in spec["data"]:
        if trace.get("colorscale") == "Cividis":  # plotly.js knows this name too
            stops = go.Heatmap(colorscale="Cividis").colorscale
            trace["colorscale"] = [list(stop) for stop in stops]
    assert nothing_empty(json.loads(go.Figure(spec).to_json())) == nothing_empty(spec)


def nothing_empty(value: object) -> object:
    """Leave out what plotly leaves out: empty lists and mappings, and None in mappings."""
    if isinstance(value, dict):
        return {
            key: part
            for key, one in value.items()
            if (part := nothing_empty(one)) not in (None, [], {})
        }
    return [nothing_empty(one) for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_table(name: str) -> None:
    rows = figures.figure_table(FIGURES[name])
    assert rows
    assert all(len(row) >= 3 for row in rows)
    assert not any("<" in key or "&" in key for row in rows for key in row)


@pytest.mark.parametrize("name", FIGURES)
def test_a_table_names_what_an_axis_names(name: str) -> None:
    layout = json.loads(FIGURES[name].to_json())["layout"]
    named = {
        key: {style.plain(text) for text in axis["ticktext"]}
        for key, axis in layout.items()
        if "axis" in key and axis.get("ticktext")
    }
    columns = {
        style.plain(layout[key]["title"]["text"]): texts
        for key, texts in named.items()
        if layout[key].get("title", {}).get("text")
    }
    for row in figures.figure_table(FIGURES[name]):
        for column in columns.keys() & row.keys():
            assert row[column] in columns[column]


def test_tables_tell_the_step_beside_which_something_is_drawn() -> None:
    rows = figures.figure_table(
        figures.advantage_dumbbell([[0.5, -0.5], [-0.5, 0.5]], [[1.0, -1.0], [-1.0, 1.0]])
    )
    assert [row["step t (rollouts side by side)"] for row in rows] == [1, 1, 2, 2] * 2
    trajectory = make_trajectory()
    rows = figures.figure_table(figures.operation_timeline(trajectory))
    asked = Counter(
        row["step t (chunk number)"] for row in rows if row["series"].startswith("retrieved")
    )
    hits = Counter(
        {
            step.step: len(found)
            for step in trajectory.steps
            if (found := [one for answered in step.chunk_questions for one in answered.retrieved])
        }
    )
    hits["after the last"] = sum(len(answered.retrieved) for answered in trajectory.questions)
    assert asked == hits


def test_tables_of_credit_rules_tell_rules_and_calls() -> None:
    numbers = {field.name: 1 for field in dataclasses.fields(Row)}
    rules = {"eara": 0.0, "step-loo": 26.04, "owen": 812.5}
    rows = [
        Row(
            **numbers
            | {
                "slice": place,
                "rule": rule,
                "truth": "causal",
                "measure": "rank",
                "value": 0.5,
                "calls_made": calls,
            }
        )
        for place in ("all", *itertools.chain(*REGIMES.values()))
        for rule, calls in rules.items()
    ]
    for builder in (figures.credit_by_regime, figures.differences_by_regime):
        table = figures.figure_table(builder(rows, "causal"))
        assert {row["credit rule"] for row in table} == {*rules}
    table = figures.figure_table(figures.credit_per_call(rows, "causal"))
    (column,) = {key for row in table for key in row if key.startswith("reader calls")}
    assert {float(row[column]) for row in table if column in row} == {0.0, 26.04, 812.5}


def test_recall_tells_ranks_files_and_which_differences_are_clear() -> None:
    figure = FIGURES["recall_by_rank"]
    rows = figures.figure_table(figure)
    assert {row["items retrieved, k"] for row in rows} == {1, 3, 10}
    assert {row["panel"] for row in rows} == {"squad", "qmsum"}
    assert "Above: none; below: qmsum dense -0.10." in figure.layout.meta["caption"]


def test_tables_tell_the_panel_where_series_repeat() -> None:
    figure = figures.training_curves([{"step": 1, "reward": 0.5, "entropy": 0.2}])
    assert [row["panel"] for row in figures.figure_table(figure)] == [
        "reward (mean)",
        "entropy (nats per token)",
    ]


@pytest.mark.parametrize("name", FIGURES)
def test_untrusted_text_is_shown_literally(name: str) -> None:
    spec = json.loads(samples(POISON)[name].to_json())
    del spec["layout"]["meta"]  # plain text, escaped by whoever shows it
    for text in strings(spec):
        assert "<" not in OWN_MARKUP.sub("", text)
        assert "$" not in text
        assert not re.search("[\ud800-\udfff\u202e]", text)
    templates = [
        trace.get(key) or trace.get("node", {}).get(key) or ""
        for trace in spec["data"]
        for key in ("hovertemplate", "texttemplate")
    ]
    assert not any("script" in str(template) for template in templates)


@pytest.mark.parametrize("name", FIGURES)
def test_long_words_do_not_break_a_figure(name: str) -> None:
    spec = json.loads(samples("x" * 10_000)[name].to_json())
    assert len(json.dumps(spec)) < 40_000
    assert all(len(text) < 400 for text in strings(spec["layout"].pop("meta")))
    assert all(len(line) < 100 for text in strings(spec) for line in text.split("<br>"))


def test_literal_text_survives_the_way_through_a_figure() -> None:
    for text in ("a < b", "R&D", "&lt;", "<b>bold</b>", "5 $ or 6 $"):
        assert style.plain(style.label(text)) == text
        assert style.plain(style.paragraph(text)) == text


@pytest.mark.parametrize("attribution", ["last_write", "creation", "lineage"])
@pytest.mark.parametrize("credited", ["retrieved", "used"])
@pytest.mark.parametrize("seed", range(4))
def test_evidence_parts_sum_to_the_evidence_matrix(
    attribution: str, credited: str, seed: int
) -> None:
    trajectory = make_trajectory(seed)
    settings = RewardSettings(attribution=attribution, credited=credited, unretrieved="drop")
    cells: Counter[tuple[int, int]] = Counter()
    for part in figures.evidence_parts(trajectory, settings):
        score = trajectory.questions[part.question].score
        cells[part.step - 1, part.question] += part.share * (score or 0.0)
    for t, row in enumerate(evidence_matrix(trajectory, settings)):
        for j, value in enumerate(row):
            assert cells[t, j] == pytest.approx(value or 0.0)


def test_sankey_widths_are_what_the_questions_earned() -> None:
    trajectory = make_trajectory()
    rows = figures.figure_table(figures.evidence_sankey(trajectory, max_questions=99))
    last = [row for row in rows if re.match(r"[✓✗?] ", row["to"])]
    scores = [answered.score for answered in trajectory.questions]
    n = sum(score is not None for score in scores)
    earned = sum(row["share"] for row in last if row["kind"] == "earned")
    assert earned == pytest.approx(sum(score or 0 for score in scores) / n, abs=1e-3)
    unearned = sum(row["share"] for row in last if row["kind"] == "not earned")
    assert unearned == pytest.approx(sum(1 - (score or 0) for score in scores) / n, abs=1e-3)
    first = [row for row in rows if row["from"].startswith("step")]
    assert len(first) + len(last) == len(rows)


def long_trajectory(num_chunks: int) -> Trajectory:
    """Return a trajectory of many steps whose questions are answered from many of them."""
    instance = planted_stream(1, StreamSettings(num_chunks=num_chunks, people=12))
    how = RolloutSettings(num_generations=1, ask_chunk_questions=False)
    return play([instance], make_manager("insert-all"), how, reader_for([instance]), 0)[0][0]


def flow_of(figure: go.Figure) -> tuple[list[str], list[float], list[str]]:
    """Return the names of the nodes that are drawn, their heights, and the colours of the links."""
    trace = figure.data[0]
    names = [name for name in trace.node.label if name]
    return names, list(trace.node.y), list(trace.link.color)


def test_sankey_steps_stand_in_their_order() -> None:
    """Incident: steps stood in the order 1, 5, 2, 3, 6, 4."""
    for trajectory in (make_trajectory(), make_trajectory(seed=5)):
        for selected in (None, "", "question 2"):
            names, heights, _ = flow_of(figures.evidence_sankey(trajectory, selected=selected))
            assert len(names) == len(heights)
            places = dict(zip(names, heights, strict=True))
            steps = [name for name in names if name.startswith("step ")]
            numbers = sorted(int(name.removeprefix("step ")) for name in steps)
            from_top = sorted(steps, key=places.__getitem__)
            assert len(steps) > 2 and from_top == [f"step {number}" for number in numbers]
            assert all(0 < height < 1 for height in heights)


def test_sankey_of_a_wrong_answer_shows_no_bright_blue() -> None:
    """Incident: its items kept bright bands of what they earned from other questions."""
    trajectory = make_trajectory()
    wrong = next(
        j
        for j, answered in enumerate(trajectory.questions)
        if answered.score == 0 and answered.retrieved
    )
    _, _, colors = flow_of(figures.evidence_sankey(trajectory, selected=f"question {wrong + 1}"))
    bright = [color for color in colors if color.endswith(STRONG)]
    assert bright and all(color.startswith(style.GREY) for color in bright)
    assert any(color.startswith(style.BLUE) for color in colors)  # faint, of other questions


def test_sankey_keeps_the_last_words_of_an_item() -> None:
    """Incident: labels were cut before the word that answers."""
    trajectory = make_trajectory()
    asked = {found.item_id for one in trajectory.questions for found in one.retrieved}
    item = next(item for item in trajectory.final_memory() if item.item_id in asked)
    long = dataclasses.replace(item, content="Mia " + "very " * 20 + "gladly lives in Vienna.")
    last = trajectory.steps[-1]
    delta = dataclasses.replace(last.delta, written=(*last.delta.written, long))
    steps = (*trajectory.steps[:-1], dataclasses.replace(last, delta=delta))
    figure = figures.evidence_sankey(dataclasses.replace(trajectory, steps=steps))
    [name] = [name for name in flow_of(figure)[0] if "Vienna" in name]
    assert name.endswith("in Vienna.") and "…" in name


def test_sankey_of_many_steps_is_drawn_in_runs_and_a_selection_in_full() -> None:
    trajectory = long_trajectory(60)
    questions = range(len(trajectory.questions))
    whole = figures.evidence_sankey(trajectory, questions, selected="")
    names = flow_of(whole)[0]
    runs = [name for name in names if name.startswith("step")]
    assert len(names) <= MAX_STEPS + MAX_ITEMS + len(questions)
    assert len(runs) <= MAX_STEPS and "runs" in whole.layout.meta["caption"]
    part = figures.evidence_sankey(trajectory, questions, selected="question 1")
    found = {f"#{item.item_id}" for item in trajectory.questions[0].retrieved}
    assert found == {name.split()[0] for name in flow_of(part)[0] if name.startswith("#")}


def test_sankey_shows_chosen_questions_only() -> None:
    trajectory = make_trajectory()
    figure = figures.evidence_sankey(trajectory, questions=[2])
    asked = {row["to"] for row in figures.figure_table(figure) if row["to"][0] in "✓✗?"}
    assert len(asked) == 1
    assert "1 of 1 questions" in figure.layout.meta["caption"]
    assert f"(1 of {len(trajectory.questions)} questions shown)" in figure.layout.meta["caption"]


def test_heatmap_holds_the_worked_example() -> None:
    figure = figures.evidence_heatmap(worked_example())
    heat, zeros, scores, margin = figure.data
    assert heat.z == ([0.25, None], [None, None], [0.25, 0.25], [None, None])
    assert zeros.x == ()
    assert list(scores.y) == [1.0, 0.5]
    assert list(margin.x) == [0.25, 0.0, 0.5, 0.0]
    assert "Step 3 contributes most, N_t = 0.5" in figure.layout.meta["caption"]


def test_heatmap_tells_wrong_answers_from_no_evidence() -> None:
    trajectory = make_trajectory()
    figure = figures.evidence_heatmap(trajectory)
    heat, zeros, _, margin = figure.data
    assert len(zeros.x) > 0
    for step, j in zip(zeros.y, zeros.x, strict=True):
        assert heat.z[step - 1][j - 1] is None
        assert not trajectory.questions[j - 1].score
        assert trajectory.questions[j - 1].retrieved
    assert list(margin.x) == pytest.approx(evidence_contribution(trajectory), rel=1e-3)


def test_timeline_marks_every_operation_and_every_retrieval() -> None:
    trajectory = make_trajectory()
    figure = figures.operation_timeline(trajectory)
    marks = {trace.name: len(trace.x) for trace in figure.data if trace.mode == "markers"}
    kinds = Counter(
        outcome.operation.kind if outcome.applied else "invalid"
        for step in trajectory.steps
        for outcome in step.outcomes
    )
    assert {name: marks[name] for name in kinds} == kinds
    assert marks["evicted"] == 1
    asked = [answered for step in trajectory.steps for answered in step.chunk_questions]
    retrievals = sum(len(answered.retrieved) for answered in (*asked, *trajectory.questions))
    assert sum(marks[name] for name in marks if name.startswith("retrieved")) == retrievals
    shapes = {trace.marker.symbol for trace in figure.data if trace.mode == "markers"}
    assert len(shapes) == len(marks)


def test_timeline_keeps_to_its_number_of_lanes() -> None:
    figure = figures.operation_timeline(make_trajectory(), max_items=2)
    assert sum("#" in text for text in figure.layout.yaxis.ticktext) == 2
    assert "(2 most retrieved shown)" in figure.layout.meta["caption"]


def test_memory_growth_counts_what_the_memory_holds() -> None:
    trajectory = make_trajectory()
    items, tokens = figures.memory_growth(trajectory).data[:2]
    steps = range(1, trajectory.num_steps + 1)
    assert list(items.y) == [len(trajectory.memory_at(step)) for step in steps]
    assert list(tokens.y) == [step.memory_tokens for step in trajectory.steps]


def test_memory_growth_of_many_steps_has_few_points_and_all_operations() -> None:
    trajectory = make_trajectory(num_chunks=2 * MAX_POINTS + 5)
    figure = figures.memory_growth(trajectory)
    items, tokens = figure.data[:2]
    assert len(items.x) <= MAX_POINTS and items.x[-1] == trajectory.num_steps
    assert list(tokens.y) == [trajectory.steps[end - 1].memory_tokens for end in items.x]
    drawn = sum(sum(trace.y) for trace in figure.data if trace.type == "bar")
    assert drawn == sum(len(step.outcomes) for step in trajectory.steps)


def test_bars_of_a_step_stack_up_to_its_total() -> None:
    rewards = hybrid_reward(worked_example(), RewardSettings(w1=0.7, w2=0.2))
    *bars, totals = figures.reward_decomposition(rewards).data
    for place, reward in enumerate(rewards):
        stacked = sum(bar.y[place] or 0.0 for bar in bars)
        assert stacked == pytest.approx(reward.total, abs=2e-3)
        assert totals.y[place] == pytest.approx(reward.total, abs=1e-3)
    assert [bar.name for bar in bars] == ["EARA", "format", "0.7 × chunk step", "0.2 × compression"]


def test_dead_groups_are_marked() -> None:
    figure = figures.advantage_heatmap([[1.0, 0.0, None], [-1.0, 0.0, None]])
    assert [note.x for note in figure.layout.annotations] == [2, 3]
    assert {note.text for note in figure.layout.annotations} == {"no gradient"}
    assert figure.data[0].zmid == 0 and figure.data[0].zmin == -figure.data[0].zmax


def test_a_rule_that_pays_every_step_does_not_flatten_the_others() -> None:
    """Incident: in notebook 08 the row of outcome-broadcast left all other rows pale."""
    credits = {"all of it": [0.75] * 3, "shares": [0.125, None, -0.0625]}
    figure = figures.credit_by_rule(credits)
    assert [list(row) for row in figure.data[0].z] == [[1, 1, 1], [1, None, -0.5]]
    rows = figures.figure_table(figure)
    assert [row["value"] for row in rows if row["series"] == "credit"] == [
        0.75, 0.75, 0.75, 0.125, -0.0625,
    ]  # fmt: skip
    assert "note" not in rows[0]
    assert [list(row) for row in figure.data[0].text][1] == ["0.125", "", "-0.062"]


def test_what_has_no_value_is_told_from_zero() -> None:
    """Incident: both were nearly white in a heatmap without numbers."""
    for figure, name in (
        (figures.credit_by_rule({"a": [0.0, None, 1.0], "b": [0.0, 0.5, 1.0]}), "not assigned"),
        (figures.advantage_heatmap([[0.0, 1.0, 0.5], [0.0, -1.0, None]]), "not scored"),
    ):
        [marks] = [trace for trace in figure.data if trace.name == name]
        assert len(marks.x) == 1 and marks.showlegend
        assert f" A dash is {name} (1), 0 is a value." in figure.layout.meta["caption"]
    whole = figures.credit_by_rule({"a": [0.0, 1.0]})
    assert not whole.data[1].showlegend and "dash" not in whole.layout.meta["caption"]


def test_a_share_of_zero_has_no_axis_below_zero() -> None:
    records = [{"step": n, "frac_reward_zero_std": 0.0, "entropy": n / 10} for n in (1, 2)]
    figure = figures.training_curves(records)
    assert tuple(figure.layout.yaxis.range) == (-0.05, 1.05)
    assert figure.layout.yaxis2.range is None


def test_dumbbell_leaves_out_what_has_no_advantage() -> None:
    figure = figures.advantage_dumbbell([[1.0, None], [-1.0, 0.5]], [[-0.5, 0.1], [-1.0, 0.5]])
    assert [len(trace.x) for trace in figure.data] == [9, 3, 3]
    assert "turns the sign of 1 of 3" in figure.layout.meta["caption"]


def test_training_draws_what_the_records_hold() -> None:
    records = [{"step": 1, "reward": 0.25, "loss": 9.0}, {"step": 2, "reward": 0.75, "loss": 8.0}]
    figure = figures.training_curves(records)
    assert [list(trace.y) for trace in figure.data] == [[0.25, 0.75]]
    assert "0.25 in the first third, 0.75 in the last" in figure.layout.meta["caption"]


def empty_trajectory() -> Trajectory:
    return dataclasses.replace(make_trajectory(), steps=(), questions=())


def test_nothing_to_show_is_no_error() -> None:
    silent = dataclasses.replace(make_trajectory(), questions=())
    unscored = dataclasses.replace(
        silent,
        questions=tuple(
            dataclasses.replace(answered, score=None) for answered in make_trajectory().questions
        ),
    )
    for trajectory in (silent, unscored, empty_trajectory()):
        for builder in (
            figures.memory_growth,
            figures.operation_timeline,
            figures.evidence_sankey,
            figures.evidence_heatmap,
        ):
            assert builder(trajectory).layout.meta["caption"]
    for trajectory in (silent, unscored):
        assert figures.reward_decomposition(hybrid_reward(trajectory)).layout.meta["caption"]
    for builder in (
        figures.question_audit,
        figures.reward_decomposition,
        figures.advantage_heatmap,
        figures.training_curves,
        figures.benchmark_accuracy,
        figures.memory_length,
    ):
        assert builder([]).layout.meta["caption"]
    assert figures.advantage_dumbbell([], []).layout.meta["caption"]


def test_a_long_trajectory_stays_small_enough_for_a_notebook() -> None:
    trajectory = make_trajectory(num_chunks=120)
    for builder in (
        figures.memory_growth,
        figures.operation_timeline,
        figures.evidence_sankey,
        figures.evidence_heatmap,
    ):
        assert len(builder(trajectory).to_json()) < 64_000


def test_values_that_are_not_finite_leave_a_gap() -> None:
    figure = figures.training_curves(
        [{"step": 1, "entropy": float("nan")}, {"step": 2, "entropy": float("inf")}]
    )
    assert list(figure.data[0].y) == [None, None]


def test_table_reads_only_traces_it_knows() -> None:
    assert figures.figure_table(go.Figure(go.Pie(values=[1, 2]))) == []


def below(figure: go.Figure) -> bs4.BeautifulSoup:
    """Return what `show` puts below a figure."""
    return bs4.BeautifulSoup(figures.outputs(figure)[1]["text/html"], "html.parser")


@pytest.mark.parametrize("name", FIGURES)
def test_below_a_figure_stand_caption_description_and_table(name: str) -> None:
    figure = samples(POISON)[name]
    meta, note = figure.layout.meta, below(figure)
    assert note.figure["role"] == "figure" and note.figure["aria-label"].endswith(meta["alt"])
    assert note.figcaption.text == figures.outputs(figure)[1]["text/plain"] == meta["caption"]
    assert not note.details.has_attr("open") and note.details.p.text == note.figure["aria-label"]
    rows = figures.figure_table(figure)
    assert len(note.select("tbody tr")) == min(len(rows), MAX_TABLE_ROWS)
    assert not note.select("script, a, style, img") and not note.find_all(onclick=True)


def test_a_long_table_is_cut_and_says_so() -> None:
    note = below(figures.reward_decomposition(hybrid_reward(make_trajectory(num_chunks=120))))
    assert len(note.select("tbody tr")) == MAX_TABLE_ROWS
    assert "rows are left out here" in note.details.text


def test_below_a_slider_stands_the_state_shown_first_and_it_says_so() -> None:
    [figure, *_] = explorers.memory_player(make_trajectory()).static_figures()
    note = below(figure)
    assert note.tbody and "as it is at first" in note.details.text
    assert "as it is at first" not in below(FIGURES["memory_growth"]).text


@pytest.mark.notebook
def test_shown_figures_compare_equal_when_run_again(tmp_path) -> None:
    """nbval in strict mode runs the notebook again and finds every output as it was."""
    import nbformat.v4 as nb

    notebook = nb.new_notebook(
        cells=[
            nb.new_code_cell(
                "from finemem_lib import figures\n"
                "from finemem_lib.rewards import hybrid_reward\n"
                "from finemem_lib.data.worked_example import worked_example\n"
                "figures.show(figures.evidence_sankey(worked_example()))\n"
                "figures.show(figures.reward_decomposition(hybrid_reward(worked_example())))"
            )
        ]
    )
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    execute(notebook)
    outputs = notebook.cells[0].outputs
    assert [{*output.data} for output in outputs] == [
        {style.PLOTLY_MIME, "text/plain"},
        {"text/html", "text/plain"},
    ] * 2
    assert outputs[1].data["text/plain"].endswith("that earned nothing.")
    path = tmp_path / "shown.ipynb"
    path.write_text(json.dumps(notebook), "utf-8")
    assert path.stat().st_size < 25_000
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--nbval",
            "--nbval-current-env",
            f"--nbval-kernel-startup-timeout={LAST_RESORT:.0f}",
            "-c",
            "/dev/null",
            "--rootdir",
            str(tmp_path),
            str(path),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_a_plain_figure_is_what_plotly_makes_of_it() -> None:
    """Its JSON is plotly's, and who changes a figure or its JSON changes nothing else."""
    trajectory = make_trajectory()
    plain, asked = (figures.memory_growth(trajectory) for _ in range(2))
    asked.update_layout(height=1)
    assert asked.layout.height == 1 and asked.to_dict()["layout"]["height"] == 1
    spec = plain.to_dict()
    spec["layout"]["template"]["layout"]["font"]["size"] = 99
    again = figures.memory_growth(trajectory)
    assert again.layout.template.layout.font.size == plain.layout.template.layout.font.size == 13
    assert json.loads(plain.to_json()) == json.loads(again.to_json())
    assert copy.deepcopy(figures.memory_growth(trajectory)) == again
    with pytest.raises(AttributeError):
        _ = figures.memory_growth(trajectory).no_such_property
