"""What the README claims about the experiment is what the committed rows say.

`python -m tests.test_readme` prints what to paste.
"""

import statistics

import pytest

from finemem_lib.experiment import read_card, read_rows
from finemem_lib.experiment_table import format_difference, format_interval, measures, table
from finemem_lib.policy import make_manager
from finemem_lib.reasoning import reader_for
from finemem_lib.repro import repository_root
from finemem_lib.rewards import outcome_reward
from finemem_lib.rollout import RolloutSettings, play
from finemem_lib.training import planted_instances

MEASURES = ("accuracy, sampled", "accuracy, first 10 updates")
REGIMES = {"pressure": "12 items", "no pressure": "no limit"}
ROWS = repository_root() / "data" / "experiments" / "schemes.jsonl"


def scheme_table() -> str:
    """Return the table of reward schemes in Markdown."""
    rows = table(read_rows(ROWS), read_card(ROWS)["baseline"])
    by_place = {(row.regime, row.variant, row.measure): row for row in rows}
    lines = [
        "| Memory | Reward | Accuracy at the end | Difference | Over the first 10 updates |",
        "|---|---|---|---|---|",
    ]
    for regime, variant in dict.fromkeys((row.regime, row.variant) for row in rows):
        final, start = (by_place[regime, variant, measure] for measure in MEASURES)
        lines.append("| " + " | ".join([
            REGIMES[regime], variant, format_interval(final), format_difference(final),
            format_difference(start),
        ]) + " |")
    return "\n".join(lines)


def scripted(name: str) -> list[float]:
    """Return a script's accuracy on the held-out streams of all seeds, with and without limit."""
    seeds = sorted({result.cell.seed for result in read_rows(ROWS)})
    streams = [one for seed in seeds for one in planted_instances("held-out", 64, seed)]
    return [
        statistics.mean(outcome_reward(one) for [one] in play(
            streams, make_manager(name),
            RolloutSettings(num_generations=1, capacity=capacity, ask_chunk_questions=False),
            reader_for(streams), seed=0,
        ))
        for capacity in (12, None)
    ]


def ends_by_seed() -> list[float]:
    """Return the final accuracy of every outcome-only run under pressure, worst first."""
    return sorted(
        statistics.mean(measures(result)["accuracy, sampled"]) for result in read_rows(ROWS)
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
    claim = (f"four of five outcome-only runs ended between {rest[0]:.2f} and {rest[-1]:.2f}, one "
             f"stayed at {low:.2f}")
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


if __name__ == "__main__":
    print(scheme_table(), ends_by_seed(), scripted("insert-all"), scripted("facts-only"), sep="\n")
