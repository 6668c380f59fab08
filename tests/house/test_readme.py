"""What the README claims about the experiment is what the committed rows say.

`python -m tests.house.test_readme` prints what to paste.
"""

import functools
import statistics

import pytest

from finemem_lib.data.planted import planted_instances
from finemem_lib.experiments.rows import read_card, read_rows
from finemem_lib.experiments.tables import (
    PRIMARY,
    compared,
    format_difference,
    format_interval,
    measures,
    table,
)
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import outcome_reward
from finemem_lib.util.provenance import repository_root

REGIMES = {"pressure": "12 items", "no pressure": "no limit"}
DESIGNS = {
    "robustness": ("Fault", "regime"),
    "knobs": ("Reward", "variant"),
    "lengths": ("Chunks of a training stream", "regime"),
}
"""Designs that the README shows as a table of differences: the head and the key of its lines."""


def rows_of(name: str):
    return repository_root() / "data" / "experiments" / f"{name}.jsonl"


def table_of(name: str):
    return table(read_rows(rows_of(name)), read_card(rows_of(name))["baseline"])


def scheme_table() -> str:
    """Return the table of reward schemes in Markdown."""
    rows = table_of("schemes")
    by_place = {(row.regime, row.variant, row.measure): row for row in rows}
    lines = [
        "| Memory | Reward | Accuracy at the end | Difference | Over the first 10 updates |",
        "|---|---|---|---|---|",
    ]
    for regime, variant in dict.fromkeys((row.regime, row.variant) for row in rows):
        final, start = (by_place[regime, variant, measure] for measure in PRIMARY)
        lines.append(
            "| "
            + " | ".join(
                [
                    REGIMES[regime],
                    variant,
                    format_interval(final),
                    format_difference(final),
                    format_difference(start),
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def difference_table(name: str) -> str:
    """Return the differences to outcome-only in Markdown, a line per regime or variant."""
    head, key = DESIGNS[name]
    cells = {(getattr(row, key), row.measure): row for row in compared(table_of(name))}
    lines = [f"| {head} | Over the first 10 updates | At the end |", "|---|---|---|"]
    for what in dict.fromkeys(what for what, _ in cells):
        final, start = (format_difference(cells[what, measure]) for measure in PRIMARY)
        lines.append(f"| {what} | {start} | {final} |")
    return "\n".join(lines)


def means(name: str, test: str) -> dict[tuple[str, str, int], float]:
    """Return the accuracy of a test of every cell, by regime, variant and seed."""
    return {
        (one.cell.regime, one.cell.variant, one.cell.seed): statistics.mean(
            one.tests[test].columns["accuracy"]
        )
        for one in read_rows(rows_of(name))
        if test in one.tests
    }


def learning_claims() -> list[str]:
    """Return what is claimed of notebook 04's settings, from the rows."""
    sampled, greedy = means("generalisation", "sampled"), means("generalisation", "greedy")
    full = [f"{value:.2f}" for (regime, *_), value in sampled.items() if regime == "pressure"]
    free = [f"{value:.2f}" for (regime, *_), value in sampled.items() if regime == "no pressure"]
    best = [f"{value:.2f}" for (regime, *_), value in greedy.items() if regime == "no pressure"]
    others = [
        value
        for (_, variant, _), value in means("bonus", "sampled").items()
        if variant != "outcome-only"
    ]
    longer = [
        [
            f"{value:.2f}"
            for (regime, *_), value in means("generalisation", f"greedy{length}").items()
            if regime == "pressure"
        ]
        for length in ("", " T=24", " T=60", " T=240")
    ]
    updates = [
        f"{sum(one.tests['sampled'].columns['UPDATE right']) / one.cell.held_out / 6:.2f}"
        for one in read_rows(rows_of("generalisation"))
        if one.cell.regime == "pressure"
    ]
    return [
        f"right UPDATEs per step at T=6: {', '.join(updates)}",
        f"{', '.join(full[:-1])} and {full[-1]} with 12 items",
        f"{', '.join(free[:-1])} and {free[-1]} without a limit ({', '.join(best)} greedy)",
        f"the finer rewards end between {min(others):.2f} and {max(others):.2f} with it",
        "; ".join(
            f"{', '.join(values)} at T={length}"
            for length, values in zip((6, 24, 60, 240), longer, strict=True)
        ),
    ]


@functools.cache
def scripted_by_seed(name: str) -> dict[tuple[str, int], float]:
    """Return a script's accuracy on the held-out streams, by regime and seed."""
    found = {}
    for regime, _, seed in means("schemes", "sampled"):
        streams = planted_instances("held-out", 64, seed)
        if (regime, seed) not in found:
            settings = RolloutSettings(
                num_generations=1,
                capacity={"pressure": 12, "no pressure": None}[regime],
                ask_chunk_questions=False,
            )
            played = play(streams, make_manager(name), settings, reader_for(streams), seed=0)
            found[regime, seed] = statistics.mean(outcome_reward(one) for [one] in played)
    return found


def scripted(name: str) -> list[float]:
    """Return a script's accuracy on the held-out streams of all seeds, with and without limit."""
    return [
        statistics.mean(value for (at, _), value in scripted_by_seed(name).items() if at == regime)
        for regime in REGIMES
    ]


def ends_by_seed() -> list[float]:
    """Return the final accuracy of every outcome-only run under pressure, worst first."""
    return sorted(
        statistics.mean(measures(result)["accuracy, sampled"])
        for result in read_rows(rows_of("schemes"))
        if (result.cell.variant, result.cell.regime) == ("outcome-only", "pressure")
    )


@pytest.fixture(scope="module")
def readme():
    return (repository_root() / "README.md").read_text(encoding="utf-8")


def test_the_table_of_schemes_is_that_of_the_committed_rows(readme):
    assert scheme_table() in readme, f"paste this into the README:\n{scheme_table()}"


def test_the_spread_over_seeds_is_that_of_the_committed_rows(readme):
    low, *rest = ends_by_seed()
    assert len(rest) == 4
    claim = (
        f"four of five outcome-only runs ended between {rest[0]:.2f} and {rest[-1]:.2f}, one "
        f"stayed at {low:.2f}"
    )
    assert claim in " ".join(readme.split())


def test_the_scripts_score_what_the_readme_says(readme):
    small, unlimited = scripted("insert-all")
    told_small, told_unlimited = scripted("facts-only")
    claim = (
        f"storing every sentence scores {small:.2f} with 12 items and {unlimited:.2f} without a "
        "limit, a script that is told which sentences are facts "
        f"{told_small:.2f} and {told_unlimited:.2f}."
    )
    assert claim in " ".join(readme.split())


def test_greedy_outcome_only_is_above_storing_everything_on_every_seed(readme):
    for (regime, variant, seed), value in means("schemes", "greedy").items():
        if variant == "outcome-only":
            assert value > scripted_by_seed("insert-all")[regime, seed], (regime, seed)
    assert "above storing every sentence on each of the five seeds" in " ".join(readme.split())


@pytest.mark.parametrize("name", DESIGNS)
def test_the_differences_are_those_of_the_committed_rows(name, readme):
    assert difference_table(name) in readme, f"paste this:\n{difference_table(name)}"


def test_what_notebook_04s_settings_reach_is_what_the_rows_say(readme):
    text = " ".join(readme.split())
    for claim in learning_claims():
        assert claim in text


if __name__ == "__main__":
    print(
        scheme_table(),
        ends_by_seed(),
        scripted("insert-all"),
        scripted("facts-only"),
        *map(difference_table, DESIGNS),
        *learning_claims(),
        sep="\n",
    )
