"""Explorers of training: what they show is what training did, live, without a kernel and saved."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch

from finemem_lib import explorers, figures
from finemem_lib.cli.execute import CHECKPOINTS
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.explorers.live import Live
from finemem_lib.figures import style
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import RewardSettings, outcome_reward
from finemem_lib.runs import run as run_module
from finemem_lib.training.run import train_manager
from finemem_lib.training.schemes import PAPER_SCHEMES, RewardScheme
from tests.helpers.explorer_samples import assert_frames_are_the_states
from tests.helpers.figure_samples import POISON, strings
from tests.helpers.patience import execute
from tests.helpers.rollout_samples import rollouts

torch.set_num_threads(1)

RECORDS = [
    {
        "step": step,
        "reward": 0.5 + step / 10,
        "rewards/eara/mean": step / 10,
        "accuracy": 0.3,
        "operations/INSERT": 2.0,
        "entropy": 1 / step,
        "frac_reward_zero_std": 0.25,
        "w1": 0.5,
    }
    for step in range(1, 6)
]


@pytest.fixture(scope="module")
def manager():
    return load_manager("tiny")


@pytest.fixture(scope="module")
def played(manager):
    """Three rollouts of two streams by the tiny manager."""
    instances = planted_instances("held-out", 2, 0, StreamSettings(num_chunks=3))
    settings = RolloutSettings(num_generations=3)
    return play(instances, manager, settings, reader_for(instances), 0)


@pytest.fixture(scope="module")
def trained():
    return train_manager(
        scheme="+CSR",
        rollout=RolloutSettings(num_generations=3),
        updates=1,
        stream=StreamSettings(num_chunks=3),
        instances_per_update=2,
        keep_updates={1},
    )


# Live curves.


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, newest last."""
    bundles = []

    class Handle:
        def update(self, output, raw=False):
            bundles.append(json.loads(json.dumps(output)) if raw else output)

    def display(output, display_id=False, raw=False):
        assert display_id != bool(bundles), "one output, and at the end what stands below it"
        Handle().update(output, raw)
        return Handle()

    monkeypatch.setenv("FINEMEM_EXPLORERS", "static")
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(explorers.training, "SHARE_OF_TIME", 1.0)  # draw every record
    return bundles


def test_curves_grow_with_the_records_and_end_as_the_plain_figure(shown) -> None:
    live = explorers.LiveCurves(5)
    for record in RECORDS:
        live(record)
    assert live.error == ""
    assert [len(bundle[style.PLOTLY_MIME]["data"][0]["x"]) for bundle in shown] == [1, 2, 3, 4, 5]
    title = shown[2][style.PLOTLY_MIME]["layout"]["title"]["text"]
    assert title.startswith("Training, 3/5 updates, about ")
    final = json.loads(figures.training_curves(RECORDS).to_json())
    assert shown[-1][style.PLOTLY_MIME]["data"] == final["data"]
    figure = live.finish(RECORDS)
    assert shown[-2][style.PLOTLY_MIME] == {**final, "config": style.CONFIG}
    assert tuple(shown[-2:]) == figures.outputs(figure)


def test_in_a_front_end_a_widget_grows_until_the_plain_figure_takes_its_place(
    shown, monkeypatch
) -> None:
    """Incident: JupyterLab showed the first update until the end, because it does not draw a plain
    figure again when its output is updated."""
    monkeypatch.setenv("FINEMEM_EXPLORERS", "live")
    live = explorers.LiveCurves(5)
    told = []
    for number, record in enumerate(RECORDS, 1):
        live(record)
        assert live.error == ""
        assert len(shown) == 1 and len(shown[0].spec["data"][0]["y"]) == number
        assert shown[0].spec["layout"]["title"]["text"] == f"Training, {live.line}"
        told.append(shown[0].spec)
    assert told[0] != told[1]  # an equal spec would not reach the page
    assert len(shown[0].get_state("_esm")["_esm"]) < 20_000  # Incident: a FigureWidget loads 5 MB
    live.finish(RECORDS)
    assert shown[0].comm is None and style.PLOTLY_MIME in shown[1]
    live = explorers.LiveCurves(2)
    shown.clear()
    live({"step": 1, "reward": 0.5})
    live({"step": 2, "reward": 0.5, "entropy": 1.0})
    [widget] = shown
    assert live.error == "" and len(widget.spec["data"]) == 2


def test_a_quantity_that_comes_later_gets_its_panel(shown) -> None:
    live = explorers.LiveCurves(2)
    live({"step": 1, "reward": 0.5})
    live({"step": 2, "reward": float("nan"), "entropy": 1.0})
    assert live.error == ""
    reward, entropy = shown[-1][style.PLOTLY_MIME]["data"]
    assert (reward["y"], entropy["y"]) == ([0.5, None], [None, 1.0])


def test_an_error_in_drawing_is_told_once_and_stops_nothing(monkeypatch, capsys) -> None:
    def broken(*_, **__):
        raise OSError("no front end")

    monkeypatch.setattr("IPython.display.display", broken)
    live = explorers.LiveCurves(5)
    for record in RECORDS:
        live(record)
    live({})
    assert capsys.readouterr().err.count("training goes on") == 1

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("IPython.display.display", stopped)
    live = explorers.LiveCurves(5)
    with pytest.raises(KeyboardInterrupt):  # the stop button is no error
        live(RECORDS[0])


def test_drawing_takes_no_more_than_its_share_of_the_time(shown, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(explorers.training, "SHARE_OF_TIME", 0.05)
    monkeypatch.setattr(explorers.training.time, "perf_counter", lambda: clock[0])
    live = explorers.LiveCurves(1000)
    draw = live._draw

    def slow():
        clock[0] += 1.0
        draw()

    live._draw = slow
    for step in range(1, 201):
        live({"step": step, "reward": 0.0})
        clock[0] += 1.0
    assert len(shown) == pytest.approx(200 * 0.05, abs=2)
    assert shown[-1][style.PLOTLY_MIME]["data"][0]["x"][-1] > 150


@pytest.mark.notebook
def test_a_notebook_without_a_front_end_keeps_one_figure() -> None:
    import nbformat.v4 as nb

    notebook = nb.new_notebook(
        cells=[
            nb.new_code_cell(
                "from finemem_lib.explorers.training import LiveCurves\n"
                "live = LiveCurves(3)\n"
                "records = [{'step': n, 'reward': n / 4} for n in (1, 2, 3)]\n"
                "for record in records: live(record)\n"
                "figure = live.finish(records)"
            )
        ]
    )
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "", "language": "python"}
    execute(notebook)
    figure, below = notebook.cells[0].outputs
    assert figure.data[style.PLOTLY_MIME]["data"][0]["y"] == [0.25, 0.5, 0.75]
    assert below.data["text/plain"].startswith(
        "Mean reward 0.25 in the first third, 0.75 in the last."
    )


# What training did.


def test_groups_are_those_of_the_trainer(trained) -> None:
    (record,) = trained.records
    groups = figures.rollout_groups(trained.trajectories[1], "+CSR")
    values = [abs(a) for group in groups for row in group.advantages for a in row]
    assert max(values) == pytest.approx(record["advantages/max_abs"], abs=1e-4)
    assert sum(values) / len(values) == pytest.approx(record["advantages/mean_abs"], abs=1e-4)
    dead = sum(len(group.without_gradient()) for group in groups)
    assert dead / 6 == pytest.approx(record["frac_reward_zero_std"])
    rewards = [r for group in groups for row in group.rewards for r in row]
    assert sum(rewards) / len(rewards) == pytest.approx(record["reward"], abs=1e-4)


@pytest.fixture(scope="module", params=["slot price", "operation slot price"])
def priced(request, tmp_path_factory):
    """One update trained with a price that follows from all of its groups, and its scheme."""
    folder = tmp_path_factory.mktemp("priced")
    result = train_manager(
        scheme=request.param,
        rollout=RolloutSettings(num_generations=3, capacity=2),
        updates=1,
        stream=StreamSettings(num_chunks=3),
        instances_per_update=3,
        keep_updates={1},
        output_dir=folder,
    )
    return result, request.param


def test_a_run_shows_the_advantages_that_training_recorded(priced) -> None:
    """Incident: of few kept groups, a price of the whole update came out as another."""
    result, scheme = priced
    last = {1: result.trajectories[1][:0:-1]}
    explorer = explorers.training_explorer(
        result.records, last, result.manager, scheme, stored=result.updates
    )
    played = result.updates.played(1)
    rows = list(zip(played.advantages, played.operations or itertools.repeat(()), strict=False))
    ids = [group[0].instance_id for group in last[1]]
    order = [group[0].instance_id for group in played.groups]
    wanted = [order.index(one) for one in ids]
    assert wanted == [2, 1]
    for shown, place in enumerate(wanted):
        for rollout, step in itertools.product(range(3), range(1, 4)):
            advantage, added = rows[place * 9 + (step - 1) * 3 + rollout]
            state = {"update": 1, "instance": shown, "rollout": rollout, "step": step}
            views = explorer.build(**state, colour="advantage")
            tokens = {value for line in views["step"].data[0].z for value in line} - {None}
            assert views["group"].data[0].z[rollout][step - 1] == style.number(advantage)
            assert tokens <= {style.number(advantage + more) for more in (0.0, *added)}
            assert len(tokens) >= len({*added})
    groups = figures.recorded_groups(played, scheme, RewardSettings())
    largest = max(
        one.largest(row, step) for one in groups for row in range(3) for step in range(1, 4)
    )
    assert result.records[0]["advantages/max_abs"] == pytest.approx(largest, abs=1e-4)
    with pytest.raises(ValueError, match="the record of update 1 holds no by-hand"):
        foreign = [dataclasses.replace(one, instance_id="by-hand") for one in last[1][0]]
        explorers.training_explorer(
            result.records, {1: [foreign]}, result.manager, scheme, stored=result.updates
        )


def test_operations_pay_their_own_tokens_apart(priced) -> None:
    result, scheme = priced
    groups = figures.recorded_groups(result.updates.played(1), scheme, RewardSettings())
    if scheme == "slot price":
        assert all(group.operations is None for group in groups)
        return
    credited = [
        (step, row[t])
        for group in groups
        for one, row in zip(group.rollouts, group.operations, strict=True)
        for t, step in enumerate(one.steps)
    ]
    assert all(len(values) == len(step.outcomes) for step, values in credited)
    assert any(len({*values}) > 1 for _, values in credited)


def test_log_probabilities_are_those_recorded_when_sampling(manager, played) -> None:
    steps = [step for group in played for one in group for step in one.steps]
    manager.model.train()
    for step, row in zip(steps, explorers.token_logprobs(manager, steps), strict=True):
        assert row == pytest.approx(step.logprobs, abs=1e-4)
    assert manager.model.training
    manager.model.eval()


def test_what_training_changed_is_seen_in_the_tokens(played, trained) -> None:
    view = explorers.log_prob_change(played[0][0], trained.manager)
    changes = [change for trace in view.data for change in trace.marker.color]
    assert len(changes) == sum(len(step.completion_ids) for step in played[0][0].steps)
    assert any(abs(change) > 1e-3 for change in changes)
    scripted = dataclasses.replace(
        played[0][0], steps=(dataclasses.replace(played[0][0].steps[0], completion_ids=None),)
    )
    with pytest.raises(ValueError, match="step 1 has no token ids"):
        explorers.log_prob_change(scripted, trained.manager)


def test_kept_rollouts_come_back_from_a_run(played, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path))
    run = run_module.start_run("04_grpo_training", {"run_id": "r"})
    run.save("training_rollouts", {1: played, 20: played[:1]})
    found = run.load("training_rollouts")
    assert {update: [len(group) for group in groups] for update, groups in found.items()} == {
        1: [3, 3],
        20: [3],
    }
    for old, new in zip(played[1], found[1][1], strict=True):
        assert dataclasses.replace(new, metadata={}) == dataclasses.replace(old, metadata={})
    assert (
        figures.rollout_groups(found[1])[0].advantages
        == figures.rollout_groups(played)[0].advantages
    )


def test_scratch_is_kept_only_when_asked(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path))
    run = run_module.start_run("04_grpo_training", {"run_id": "r"})
    folder = run.scratch("checkpoints")
    folder.mkdir(parents=True)
    (folder / "file").write_text("kept")
    assert (run.scratch("checkpoints", keep=True) / "file").read_text() == "kept"
    assert not run.scratch("checkpoints").exists()


def test_checkpoints_of_an_earlier_pass_are_never_removed(tmp_path, monkeypatch, capsys) -> None:
    """Incident: Run All after a crash, with `resume` still False, destroyed the training so far."""
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path))
    run = run_module.start_run("04_grpo_training", {"run_id": "r"})
    for step in (10, 20, 30):
        (run.scratch("checkpoints", keep=True) / f"checkpoint-{step}").mkdir(parents=True)
        folder = run.scratch("checkpoints")
        assert not folder.exists()
        assert "resume to True" in capsys.readouterr().out
    held = sorted(path.name for path in (tmp_path / "r" / "scratch").glob("*/checkpoint-*"))
    assert held == ["checkpoint-10", "checkpoint-20", "checkpoint-30"]
    assert all(path.name.endswith(CHECKPOINTS) for path in folder.parent.iterdir())


# Explorers.


def every_state(explorer: explorers.Explorer) -> list[dict]:
    """The figures of every value of every control, one changed at a time."""
    first = explorer.settle({})
    return [
        explorer.figures(**first | {control.name: value})
        for control in explorer.controls
        for _, value in control.choices(first)
    ]


@pytest.fixture(scope="module")
def run_explorer(manager, played):
    return explorers.training_explorer(RECORDS, {1: played, 5: played[:1]}, manager)


def test_every_choice_of_every_explorer_has_its_figures(run_explorer, played) -> None:
    for one in (run_explorer, explorers.compare_rollouts(played)):
        for views in every_state(one):
            for figure in views.values():
                meta = figure.layout.meta
                assert figure.layout.title.text and meta["caption"] and meta["alt"]
                assert figures.figure_table(figure) or "update" in meta["alt"]
                clicks = meta.get("clicks", {"points": {}})
                names = [control.name for control in one.controls]
                assert not clicks["points"] or clicks["control"] in names


@pytest.mark.parametrize("turned", [1, -1])
def test_it_starts_where_most_groups_carry_a_gradient(manager, played, turned) -> None:
    """Incident: the last update was shown, in which 36 of 48 groups carried no gradient."""
    groups = played[::turned]
    dead = [[one] * 3 for one, *_ in groups]  # every rollout did the same
    kept = {1: [dead[0], groups[0]], 3: [*groups, dead[0]], 5: dead}
    state = explorers.training_explorer(RECORDS, kept, manager).settle({})
    found = figures.rollout_groups(kept[3])
    assert state["update"] == 3
    most = max(found, key=lambda group: group.information())
    assert found[state["instance"]] is most
    largest = max(abs(a) for row in most.advantages for a in row)
    assert abs(most.advantages[state["rollout"]][state["step"] - 1]) == largest
    compared = explorers.compare_rollouts(kept[3]).settle({})
    assert compared["instance"] == state["instance"]
    outcomes = [outcome_reward(one) for one in kept[3][compared["instance"]]]
    assert outcomes[compared["first"]] == min(outcomes)
    assert outcomes[compared["second"]] == max(outcomes)


def test_a_group_is_shown_where_its_completions_answer_one_prompt(manager, played) -> None:
    explorer = explorers.group_explorer(played[0], manager, scale_rewards="none")
    [found] = figures.rollout_groups(played[:1], scale_rewards="none")
    state = explorer.settle({})
    assert (
        state["step"] == found.first_difference() and state["step"] not in found.without_gradient()
    )
    assert (
        "All 3 completions answer this one prompt."
        in (explorer.figures()["prompt"].layout.meta["caption"])
    )
    for scheme, scale in (("Fine-Mem", "none"), ("outcome-only", "group"), ("+CSR", "batch")):
        [found] = figures.rollout_groups(played[:1], scheme, scale_rewards=scale)
        for step in (1, 2, 3):
            figure = explorer.figures(step=step, scheme=scheme, scale=scale)["group"]
            advantages = [row[step - 1] for row in found.advantages]
            assert list(figure.data[-1].x) == [style.number(value) for value in advantages]
            ids = [one.steps[step - 1].completion_ids for one in played[0]]
            cut = sum(map(len, ids)) - len(figure.data[0].text)
            said = f" {cut} tokens have no room."
            assert cut >= 0 and (said in figure.layout.meta["caption"]) == bool(cut)
            signs = {
                (note.split(":")[0], note.split()[-1][0]) for note in figure.data[0].customdata
            }
            for row, value in enumerate(advantages, 1):
                if value:
                    assert (f"completion {row}", "+" if value > 0 else "-") in signs
    assert_frames_are_the_states(explorer)


def test_a_scheme_that_is_not_of_the_paper_can_be_looked_at(manager, played) -> None:
    scheme = RewardScheme("credited", {"outcome": 1.0, "uniform-split": 1.0})
    explorer = explorers.group_explorer(played[0], manager, scheme)
    names = [trace.name for trace in explorer.figures()["group"].data if trace.showlegend]
    assert names == ["outcome", "uniform-split"]
    assert [value for _, value in explorer.controls[1].choices({})] == [*PAPER_SCHEMES, "credited"]


def test_static_frames_are_of_the_groups_that_show_most(manager, played) -> None:
    dead = [[one] * 3 for one, *_ in played]
    explorer = explorers.training_explorer(RECORDS, {5: [*dead, *played]}, manager)
    assert {state["instance"] for state in explorer.linked} == {2, 3}


def test_clicks_lead_from_the_run_to_the_step(run_explorer) -> None:
    live = Live(run_explorer)
    assert live.error == ""
    live.click("run", 0, [0])
    assert live.state["update"] == 1 and live.controls["update"].value == 1
    live.set("instance", 1)
    live.click("rollout", 0, [2])
    assert live.state["step"] == 3
    assert "step 3" in live.views["step"].layout.title.text
    live.set("colour", "change")
    assert live.error == "" and "none of which" not in live.views["step"].layout.meta["caption"]
    assert max(abs(v) for row in live.views["step"].data[0].z for v in row if v is not None) < 1e-3
    live.set("update", 5)  # kept one instance only
    assert live.state["instance"] == 0 and live.error == ""


def test_a_click_on_a_cell_chooses_its_row(run_explorer) -> None:
    figures = run_explorer.figures(update=1)
    group = figures["group"].layout.meta["clicks"]
    assert (group["control"], group["points"]["0"][2]) == ("rollout", [2, 2, 2])
    assert figures["update"].layout.meta["clicks"]["points"]["0"][1] == [1, 1, 1]
    assert figures["run"].layout.meta["clicks"]["points"]["0"] == [1, None, None, None, 5]


def test_without_a_kernel_the_way_from_the_run_to_the_step_is_left(run_explorer, played) -> None:
    found = run_explorer.static_figures()
    assert [len(figure.layout.sliders[0].steps) for figure in found] == [2, 2, 3, 6, 12]
    paths = found[0].layout.meta["paths"]
    assert found[0].layout.meta["levels"] == ["update", "instance", "rollout", "step t"]
    assert len(paths) == 12 and len({tuple(path) for path in paths}) == 12
    start = paths[found[0].layout.meta["start"]]
    state = run_explorer.settle({})
    assert start[0] == f"update {state['update']}" and start[3] == f"step t {state['step']}"
    assert (
        "left out 3 of 9 (rollout), 15 of 27 (step t); fixed colour of tokens: push"
        in (found[0].layout.meta["caption"])
    )
    assert sum(len(figure.to_json()) for figure in found) < 60_000
    assert len(explorers.compare_rollouts(played).static_figures()) == 3


def test_frames_are_the_states(run_explorer, played) -> None:
    assert_frames_are_the_states(run_explorer)
    assert_frames_are_the_states(explorers.compare_rollouts(played))


def test_every_group_shows_its_strongest_rollouts_step_by_step(run_explorer, played) -> None:
    [group] = figures.rollout_groups(played[:1])
    own = [state for state in run_explorer.linked if (state["update"], state["instance"]) == (5, 0)]
    by_size = sorted(range(3), key=lambda row: -max(map(abs, group.advantages[row])))
    assert {state["rollout"] for state in own} == {*by_size[: explorers.training.STATIC_ROLLOUTS]}
    assert [state["step"] for state in own if state["rollout"] == by_size[0]] == [1, 2, 3]
    [other] = [state["step"] for state in own if state["rollout"] == by_size[1]]
    sizes = [abs(advantage) for advantage in group.advantages[by_size[1]]]
    assert sizes[other - 1] == max(sizes)


def test_a_first_scheme_that_is_not_offered_is_refused(played) -> None:
    with pytest.raises(ValueError, match="'slot price', expected one of outcome-only, "):
        explorers.compare_rollouts(played, "slot price")


def test_another_scheme_pays_other_advantages(played) -> None:
    explorer = explorers.compare_rollouts(played)
    first, other = (
        explorer.figures(scheme=name)["rollouts"].data[0].z for name in ("Fine-Mem", "outcome-only")
    )
    assert first != other
    assert [list(row) for row in other] == [
        [style.number(a) for a in row]
        for row in figures.rollout_groups(played, "outcome-only")[
            explorer.settle({})["instance"]
        ].advantages
    ]


def test_an_annealed_weight_is_the_one_of_its_update(manager, played) -> None:
    records = [{"step": 1, "reward": 0.5, "w1": 0.5}, {"step": 2, "reward": 0.5, "w1": 0.0}]
    explorer = explorers.training_explorer(records, {1: played, 2: played}, manager)

    def paid(update: int) -> set[float]:
        shown = [explorer.figures(update=update, rollout=row)["rollout"] for row in range(3)]
        return {
            y
            for figure in shown
            for bar in figure.data
            if bar.name == "chunk step"
            for y in bar.y
            if y
        }

    assert paid(1) and not paid(2)


def test_nothing_kept_is_refused_and_no_record_is_no_error(manager, played) -> None:
    with pytest.raises(ValueError, match="train with keep_updates"):
        explorers.training_explorer(RECORDS, {}, manager)
    stopped = explorers.training_explorer([], {0: played}, manager)
    assert len(stopped.static_figures()) == 5


def test_hostile_rollouts_are_text(manager) -> None:
    explorer = explorers.training_explorer(RECORDS, {1: [rollouts(POISON)]}, manager)
    for figure in explorer.figures(colour="advantage").values():
        spec = json.loads(figure.to_json())
        del spec["layout"]["meta"]
        assert not any(
            "<script" in text or "$x" in text or "\u202e" in text for text in strings(spec)
        )


def test_with_a_kernel_every_stored_update_can_be_looked_at(manager, tmp_path, monkeypatch):
    done = train_manager(
        scheme="+CSR",
        rollout=RolloutSettings(num_generations=2),
        updates=3,
        stream=StreamSettings(num_chunks=2),
        instances_per_update=1,
        keep_updates={1},
        output_dir=tmp_path,
    )

    def explorer():
        return explorers.training_explorer(
            done.records, done.trajectories, manager, "+CSR", stored=done.updates
        )

    def updates(one):
        return [value for _, value in one.controls[0].choices(one.settle({}))]

    monkeypatch.setenv("FINEMEM_EXPLORERS", "static")
    assert updates(explorer()) == [1]
    monkeypatch.setenv("FINEMEM_EXPLORERS", "live")
    live = explorer()
    assert updates(live) == [1, 2, 3] and live.settle({})["update"] == 1
    views = live.build(**live.settle({"update": 3}))
    assert "Update 3" in views["step"].layout.title.text
    assert views["run"].layout.meta["clicks"]["points"]["0"] == [1, 2, 3]
