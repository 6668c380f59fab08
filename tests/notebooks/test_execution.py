"""The notebooks run through the command line, and their parameters do what they say."""

from __future__ import annotations

import re

import bs4
import pytest

from tests.helpers.notebook_runs import SMALL, SMALL_LESSON, finemem, settings
from tests.helpers.paths import SHARED_DATA

pytestmark = pytest.mark.notebook

CHANGES = {
    "01": ("questions_per_chunk=1", "questions_per_chunk_kept"),
    "02": ("capacity=3", "memory_items"),
    "03": ("beta=0", "r_eara_variance"),
    "04": ("updates=2", "reward_last_update"),
    "05": ("credited=used", "credit_at_true_step_all"),
    "06": ("capacity=2", "accuracy_insert_all"),
    "07": ("held_out=3", "accuracy_outcome_only"),
    "08": ("top_k=1", "eara_on_true_steps"),
    "09": ("learning_rate=0.003", "loss_second_update"),
    "10": ("num_generations=3", "last_step_all_rollouts_outcome"),
    "11": ("acceptance=1", "wrong_questions_kept"),
    "12": ("top_k=2", "items_shown"),
}
"""By notebook, the parameter that is changed, and a metric that must follow."""

DECLARED = {
    "01": {"max_instances", "num_chunks"},
    "02": set(),
    "03": set(),
    "05": set(),
    "04": {
        "num_chunks",
        "04.updates",
        "04.held_out",
        "04.instances_per_update",
        "04.num_generations",
    },
    "06": {"resamples"},
    "08": set(),
    "09": {"num_chunks"},
    "10": {"num_chunks", "resamples", "10.streams"},
    "11": {"resamples"},
    "12": {"resamples"},
    "07": {
        "resamples",
        "07.updates",
        "07.held_out",
        "07.instances_per_update",
        "07.num_generations",
        "07.num_seeds",
    },
}
"""Which of the small settings a notebook has; the command refuses the others."""

CHANGED_TOGETHER = (("01", "07", "08", "09", "10", "11", "12"), ("02", "04"), ("03", "05", "06"))
"""Notebooks of one run, none of which reads what another of them writes."""


@pytest.fixture(scope="module")
def changed(small_run):
    """The metrics of every notebook with its change, on what the small run wrote."""
    found = {}
    for number, notebooks in enumerate(CHANGED_TOGETHER):
        declared = set().union(*(DECLARED[notebook] for notebook in notebooks))
        values = [one for one in (*SMALL, *SMALL_LESSON) if one.split("=")[0] in declared]
        values += [f"{notebook}.{CHANGES[notebook][0]}" for notebook in notebooks]
        found |= finemem(
            small_run.folder.parent,
            *("--run-id", f"changed-{number}", "--notebooks", ",".join(notebooks)),
            *("--reuse", small_run.folder.name, *settings(values)),
        )
    return found


@pytest.mark.parametrize("notebook", CHANGES)
def test_a_changed_parameter_changes_the_stated_metric(small_run, changed, notebook):
    metric = CHANGES[notebook][1]
    assert changed[notebook][metric] != small_run.metrics[notebook][metric]


def test_the_report_of_all_notebooks_begins_with_findings_and_takes_at_most_3_mb(small_run):
    report = small_run.folder / "report.html"
    assert report.stat().st_size <= 3_000_000
    page = bs4.BeautifulSoup(report.read_text("utf-8"), "html.parser")
    found = page.select("ol.findings > li")
    assert len(found) == 7
    for item in found:
        assert re.search(r"\d", item.text), "no number"
        figure = item.select_one("a[href^='#key-']")["href"]
        assert page.select_one(f"figure{figure}")


@pytest.mark.long
def test_the_real_profile_walks_through_every_kind_of_file(tmp_path):
    names = ("squad", "clinc150", "banking77", "trec_coarse", "locomo", "squality")
    files = [SHARED_DATA / f"{name}.jsonl" for name in names]
    if not all(path.is_file() for path in files):
        pytest.skip(f"needs the sample files {', '.join(names)} in ../shared/data")
    metrics = finemem(
        tmp_path,
        "--run-id",
        "real",
        "--profile",
        "real",
        "--data",
        *map(str, files),
        *settings(["max_instances=1", "resamples=100"]),
    )
    assert set(metrics) == {"01", "02", "03", "05", "06", "08"}
    assert metrics["01"]["questions_per_chunk_kept"] >= 3
    assert metrics["03"]["conservation_gap"] < 1e-9
    assert 0 < metrics["06"]["accuracy_random"] < metrics["06"]["accuracy_insert_all"] <= 1
