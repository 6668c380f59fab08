"""Notebook 12 finds what the rows of a reward ablation hold, and says where there are none."""

from __future__ import annotations

import nbformat
import pytest

from finemem_lib.experiments.design import load_design
from finemem_lib.experiments.rows import write_rows
from tests.helpers.experiment_samples import question_results
from tests.helpers.notebook_runs import finemem, settings
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.notebook


def page(folder):
    """Run the notebook over the rows in a folder; return metrics and printed text."""
    values = settings([f"experiments={folder}", "resamples=200"])
    metrics = finemem(folder / "runs", "--run-id", "page", "--notebooks", "12", *values)
    executed = nbformat.read(
        folder / "runs/page/notebooks/12_mem_alpha.ipynb", as_version=nbformat.NO_CONVERT
    )
    outputs = [one for cell in executed.cells for one in cell.get("outputs", ())]
    return metrics["12"], "\n".join(one.get("text", "") for one in outputs)


def test_what_the_rows_hold_is_found(tmp_path):
    design = load_design(ROOT / "notebooks/designs/mem_alpha_rewards.yaml")
    write_rows(
        question_results(design, {"gamma 0": -0.3}), tmp_path / "mem_alpha_rewards.jsonl", {}
    )
    metrics, text = page(tmp_path)
    assert metrics["rows"] == 60 and "60 of 60 trainings" in text
    begin = "accuracy, sampled, to Mem-alpha"
    answer = next(line for line in text.splitlines() if line.startswith(begin))
    assert "below: gamma 0 (" in answer


def test_what_longer_streams_cost_is_found(tmp_path):
    design = load_design(ROOT / "notebooks/designs/training_length.yaml")
    results = [
        one.model_copy(
            update={
                "tests": {
                    f"sampled T={chunks}": one.tests["sampled"].model_copy(
                        update={"chunks": chunks}
                    )
                    for chunks in one.cell.test_chunks
                }
                | one.tests
            }
        )
        for one in question_results(design, {"T=24": 0.3})
    ]
    write_rows(results, tmp_path / "training_length.jsonl", {})
    metrics, text = page(tmp_path)
    assert metrics["rows"] == len(design.cells)
    answered = [line for line in text.splitlines() if line.startswith("accuracy on 240 chunks")]
    assert len(answered) == len(design.regimes)
    assert all(": above: T=24 (" in line for line in answered)


def test_without_rows_it_says_so(tmp_path):
    metrics, text = page(tmp_path)
    assert metrics["rows"] == 0 and metrics["items_shown"] == 3
    assert "0 of 60 trainings" in text and "no rows yet" in text
