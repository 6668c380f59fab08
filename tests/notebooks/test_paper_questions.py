"""The page of the paper's open questions with all rows, with some, and with none."""

from __future__ import annotations

import nbformat
import pytest

from finemem_lib.experiments.design import load_design
from finemem_lib.experiments.rows import write_rows
from tests.helpers.experiment_samples import question_results
from tests.helpers.notebook_runs import finemem, settings
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.notebook

GAINS = {"half wrong, threshold 0": -0.3, "jointly": 0.3}


def page(folder, keep):
    """Run the page over the rows made by hand that are to be kept; return metrics and texts."""
    for name in ("paper_questions", "co_evolution"):
        results = question_results(load_design(ROOT / f"notebooks/designs/{name}.yaml"), GAINS)
        if kept := [one for one in results if keep(one.cell)]:
            write_rows(kept, folder / f"{name}.jsonl", {})
    values = settings([f"experiments={folder}", "resamples=200"])
    metrics = finemem(folder / "runs", "--run-id", "page", "--notebooks", "11", *values)
    executed = nbformat.read(
        folder / "runs" / "page" / "notebooks" / "11_paper_questions.ipynb", as_version=4
    )
    texts = [
        output.get("text", "")
        for cell in executed.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    ]
    return metrics["11"], "\n".join(texts)


def test_with_all_rows_what_was_put_in_is_found(tmp_path):
    metrics, text = page(tmp_path, lambda cell: True)
    assert metrics["rows"] == 126 and "84 of 84 trainings" in text and "18 of 18 trainings" in text
    assert metrics["comparisons_decided"] > 0
    (noise,) = (
        line
        for line in text.splitlines()
        if line.startswith("accuracy, sampled, to Fine-Mem: ") and "half wrong" in line
    )
    assert noise.partition("half wrong, threshold 0 (")[0].endswith("below: ")
    assert "no rows yet" not in text.partition("On the seeds of the arena")[0]


@pytest.mark.long
def test_with_one_seed_and_missing_cells_nothing_is_decided(tmp_path):
    metrics, text = page(
        tmp_path,
        lambda cell: (
            cell.seed == 40
            and cell.regime in ("CSR and EARA alone", "teacher noise")
            and cell.variant not in ("+CSR", "half wrong, threshold 1")
        ),
    )
    assert metrics["comparisons_decided"] == 0 < metrics["comparisons_made"]
    assert "seed 40" in text and "no rows yet: +CSR" in text and "on one seed" in text


def test_with_no_rows_the_page_says_so(tmp_path):
    metrics, text = page(tmp_path, lambda cell: False)
    assert (metrics["rows"], metrics["comparisons_made"]) == (0, 0)
    assert "0 of 84 trainings have a row." in text and "too few" in text
    assert "above" not in text and "not decided" not in text
