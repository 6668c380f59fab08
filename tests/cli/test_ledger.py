"""The ledger notices wrong figures, dirty commits, changed rows, missing and left-over entries."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from finemem_lib.cli import ledger, main
from finemem_lib.evaluation.credit_truth import Row
from finemem_lib.evaluation.rows import read_rows
from finemem_lib.util.provenance import workbench_root

ROWS = workbench_root() / "data" / "experiments" / "credit_truth.jsonl"
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
    [row] = [one for one in read_rows(ROWS, Row) if {k: getattr(one, k) for k in ROW} == ROW]
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


def test_a_number_that_no_field_gives_is_noticed(checkout):
    file = checkout / "data" / "ledger.yaml"
    file.write_text(file.read_text().replace("[{low:.2f}", "[0.61"))
    assert "`written` contains 0.61, expected a field of the row" in wrong(checkout)[0]


def test_an_entry_covers_one_place(checkout):
    entry = yaml.safe_load((checkout / "data" / "ledger.yaml").read_text())["figures"][0]
    readme = checkout / "README.md"
    readme.write_text(f"{readme.read_text()}Another rule reaches {entry['text']}, too.\n")
    assert wrong(checkout) and all(line.endswith("not in the ledger") for line in wrong(checkout))


def test_a_figure_without_an_entry_is_noticed(checkout):
    readme = checkout / "README.md"
    readme.write_text(readme.read_text() + "It takes 12 s, on 97.5 % of the streams.\n")
    found = wrong(checkout)
    assert [line.split(" in ")[0] for line in found] == ["README.md: '12 s'", "README.md: '97.5 %'"]


@pytest.mark.parametrize(
    "figure",
    ["3,840 rollouts", "32 of the 144 cells", "one of five seeds", "3 minutes", "20 ms", "+0.5"],
)
def test_what_looks_measured_is_found(checkout, figure):
    readme = checkout / "README.md"
    readme.write_text(
        f"{readme.read_text()}Here {figure} and in 2026, 12 items; v1.2.3 and $0.7$.\n"
    )
    [line] = wrong(checkout)
    assert line.endswith("is not in the ledger") and figure in line


def test_entries_whose_sentences_are_gone_are_noticed(checkout):
    (checkout / "README.md").write_text("Nothing.\n")
    figure, setting = wrong(checkout)
    assert figure.endswith("is no longer in the text; remove it from the ledger")
    assert setting.startswith("README.md: '0.0015' is no longer in the text")


def edit(root, change):
    """Change the ledger of a checkout."""
    path = root / "data" / "ledger.yaml"
    entries = yaml.safe_load(path.read_text())
    change(entries)
    path.write_text(yaml.safe_dump(entries))


def test_texts_are_watched_by_glob_and_notebooks_by_their_markdown(checkout):
    cells = [
        {"cell_type": "markdown", "source": ["It takes ", "12 s at $$0.3$$."]},
        {"cell_type": "code", "source": ["x = 0.5"], "outputs": [{"text": ["0.25"]}]},
    ]
    (checkout / "pages").mkdir()
    (checkout / "pages" / "01.ipynb").write_text(json.dumps({"cells": cells}))
    edit(checkout, lambda entries: entries["watched"].append("pages/*.ipynb"))
    assert wrong(checkout) == [
        "pages/01.ipynb: '12 s' in 'It takes 12 s at .' is not in the ledger"
    ]
    setting = {"file": "pages/*.ipynb", "texts": ["12 s"], "why": "a setting"}
    edit(checkout, lambda entries: entries["not_measured"].append(setting))
    assert wrong(checkout) == []


def test_a_glob_without_a_file_is_noticed(checkout):
    edit(checkout, lambda entries: entries["watched"].append("docs/*.md"))
    assert wrong(checkout) == ["watched: no file matches 'docs/*.md'"]


def test_figures_come_from_plain_rows_and_from_cards_too(checkout):
    (checkout / "rows.jsonl").write_text('{"size": 3, "share": 0.25}\n{"size": 6, "share": 0.5}\n')
    card = {"command": "python x.py", "hardware": "2 cores", "seed": 1, "tried": 1200}
    path = checkout / "rows.json"
    path.write_text(json.dumps(card | {"git": {"commit": "abc", "dirty": False}}))
    (checkout / "README.md").write_text("Of 1,200 tried, 0.50 ended well.\n")
    figures = [
        {
            "file": "README.md",
            "text": "Of 1,200",
            "row": {"table": "card"},
            "written": "Of {tried:,}",
        },
        {"file": "README.md", "text": "0.50", "row": {"size": 6}, "written": "{share:.2f}"},
    ]

    def change(entries):
        entries["sources"] = {"mine": {"kind": "plain", "rows": "rows.jsonl"}}
        entries["figures"] = [figure | {"source": "mine"} for figure in figures]
        entries["not_measured"] = []

    edit(checkout, change)
    assert wrong(checkout) == []
    path.write_text(json.dumps(card | {"git": None, "hardware": ""}))
    assert wrong(checkout) == [
        "source mine: rows.jsonl names no clean commit (['None'])",
        "source mine: the card of rows.jsonl names no hardware",
    ]


def test_the_table_names_all_that_made_a_figure(checkout, monkeypatch, capsys):
    monkeypatch.setattr(ledger, "workbench_root", lambda: checkout)
    assert main.main(["ledger"]) == 0
    made = ledger.origin(ledger.load_ledger(checkout).sources["truth"], checkout)
    shown = capsys.readouterr().out
    for part in (made.data_hash[:12], "abc", made.command, made.hardware, "credit_truth.jsonl"):
        assert part in shown
    assert main.main(["ledger", "--json"]) == 0
    [figure] = json.loads(capsys.readouterr().out)["figures"]
    assert figure["origin"] == made.model_dump() and figure["origin"]["seeds"]


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
    assert "0 rows of truth match" in wrong(checkout)[0]
    ledger._rows.cache_clear()


def test_the_command_says_in_a_line_what_cannot_be_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ledger, "workbench_root", lambda: tmp_path)
    assert main.main(["ledger", "--check"]) == 2
    assert "ledger.yaml: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["credit_truth.jsonl", "credit_truth.json", "README.md"])
def test_the_command_names_rows_cards_and_texts_that_are_gone(checkout, monkeypatch, capsys, gone):
    [path] = checkout.rglob(gone)
    path.unlink()
    monkeypatch.setattr(ledger, "workbench_root", lambda: checkout)
    ledger._rows.cache_clear()
    assert main.main(["ledger", "--check"]) == 2
    assert str(path) in capsys.readouterr().err


def test_what_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ledger.yaml").write_text("figures: 3\n")
    with pytest.raises(ValueError, match="is not a ledger"):
        ledger.load_ledger(tmp_path)


def test_every_figure_of_this_checkout_is_what_its_rows_say():
    assert wrong(workbench_root()) == []
