"""The ledger notices a wrong figure, a dirty commit, a missing entry and changed rows."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from finemem_lib.cli import ledger, main
from finemem_lib.evaluation.credit_truth import read_table
from finemem_lib.util.provenance import repository_root

ROWS = repository_root() / "data" / "experiments" / "credit_truth.jsonl"
ROW = {"rule": "eara-used", "measure": "rank", "slice": "all", "truth": "causal"}


@pytest.fixture
def checkout(tmp_path):
    """Return a folder with a text, a ledger of its figure, and the rows that it comes from."""
    folder = tmp_path / "data" / "experiments"
    folder.mkdir(parents=True)
    shutil.copy(ROWS, folder)
    card = json.loads(ROWS.with_suffix(".json").read_text())
    card["git"] = {"commit": "abc", "dirty": False}
    (folder / "credit_truth.json").write_text(json.dumps(card))
    [row] = [one for one in read_table(ROWS) if {k: getattr(one, k) for k in ROW} == ROW]
    figure = f"{row.value:.2f} [{row.low:.2f}, {row.high:.2f}]"
    (tmp_path / "README.md").write_text(f"It reaches {figure} at a rate of 0.0015, see `0.5`.\n")
    entries = {
        "watched": ["README.md"],
        "sources": {
            "truth": {"kind": "credit truth", "rows": "data/experiments/credit_truth.jsonl"}
        },
        "figures": [
            {
                "file": "README.md",
                "text": figure,
                "source": "truth",
                "row": ROW,
                "written": "{value:.2f} [{low:.2f}, {high:.2f}]",
            }
        ],
        "not_measured": [{"file": "README.md", "texts": ["0.0015"], "why": "a setting"}],
    }
    (tmp_path / "data" / "ledger.yaml").write_text(yaml.safe_dump(entries))
    return tmp_path


def wrong(root):
    return ledger.check(ledger.load_ledger(root), root)


def test_a_figure_that_its_rows_give_is_right_and_names_who_made_it(checkout):
    assert wrong(checkout) == []
    source = ledger.load_ledger(checkout).sources["truth"]
    made = ledger.origin(source, checkout)
    assert made.clean and made.commits == ["abc"] and len(made.data_hash) == 64
    assert "benchmarks/credit.py" in made.command


def test_a_wrong_figure_is_noticed(checkout):
    file = checkout / "data" / "ledger.yaml"
    file.write_text(file.read_text().replace("[{low:.2f}", "[{low:.3f}"))
    assert len(wrong(checkout)) == 1 and ", but truth gives " in wrong(checkout)[0]


def test_a_figure_of_what_the_row_does_not_hold_is_noticed(checkout):
    file = checkout / "data" / "ledger.yaml"
    file.write_text(file.read_text().replace("{value:.2f}", "{median:.2f}"))
    assert "but truth gives" in wrong(checkout)[0]


def test_a_figure_without_an_entry_is_noticed(checkout):
    readme = checkout / "README.md"
    readme.write_text(readme.read_text() + "It takes 12 s, on 97.5 % of the streams.\n")
    found = wrong(checkout)
    assert [line.split(" in ")[0] for line in found] == ["README.md: '12 s'", "README.md: '97.5 %'"]


def test_an_entry_whose_sentence_is_gone_is_noticed(checkout):
    (checkout / "README.md").write_text("Nothing.\n")
    assert "does not stand there any more" in wrong(checkout)[0]


def test_rows_without_a_clean_commit_are_noticed(checkout):
    path = checkout / "data" / "experiments" / "credit_truth.json"
    for git in ({"commit": "abc", "dirty": True}, {}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"git": git}))
        assert "names no clean commit" in wrong(checkout)[0]


def test_changed_rows_are_noticed(checkout):
    path = checkout / "data" / "experiments" / "credit_truth.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"eara-used"' not in line]
    path.write_text("\n".join(kept) + "\n")
    ledger._rows.cache_clear()
    assert "0 rows of truth are" in wrong(checkout)[0]
    ledger._rows.cache_clear()


def test_the_command_says_in_a_line_what_cannot_be_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ledger, "repository_root", lambda: tmp_path)
    assert main.main(["ledger", "--check"]) == 2
    assert "ledger.yaml: cannot be read" in capsys.readouterr().err


def test_what_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ledger.yaml").write_text("figures: 3\n")
    with pytest.raises(ValueError, match="is not a ledger"):
        ledger.load_ledger(tmp_path)


def test_every_figure_of_this_checkout_is_what_its_rows_say():
    assert wrong(repository_root()) == []
