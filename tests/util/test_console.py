"""Tables and progress: plain lines for scripts, rich's for people, harmless text of others."""

import re

import pytest

from finemem_lib.util import console

ROWS = [
    ("name", "text"),
    ("[red]a[/red]", "b\x1b[2J\nc" + "x" * 300 + "end"),
    ("\u202e:smile:", "漢字"),
    ("", ""),
]


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def test_a_script_gets_every_row_in_one_line_without_colours(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    console.print_table(ROWS)
    header, first, second, empty = capsys.readouterr().out.split("\n")[:4]
    assert header == "name          text"
    assert first == "[red]a[/red]  b\ufffd[2J c" + "x" * 300 + "end"
    assert second == "\ufffd:smile:      漢字" and empty == ""


def test_a_header_alone_is_not_printed(capsys):
    console.print_table(ROWS[:1])
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_long_cells_folded_and_whole(capsys, terminal):
    console.print_table(ROWS)
    printed = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "\x1b" not in printed and "[red]a[/red]" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("x") == 301 and "…" not in printed  # one of them in "text"


def test_a_script_gets_a_status_a_minute_and_the_last(capsys):
    """Incident: a batch job printed nothing for the 40 hours of its training."""
    passed = [0.0]
    with console.StatusLine(clock=lambda: passed[0]) as line:
        for second in range(1, 151):
            passed[0] = second
            line.update([f"{second} of 150"])
        line.end("done")
    assert capsys.readouterr().out == "60 of 150\n120 of 150\ndone\n"


def test_a_terminal_gets_every_status_cut_to_its_width(capsys, terminal):
    with console.StatusLine() as line:
        for text in ("first", "second" * 50):
            line.update([text, "beside it"])
        line.end("done")
    printed = capsys.readouterr().out
    assert "first" in printed and "…" in printed and "beside it" in printed
    assert "done" in printed
    assert max(map(len, re.split(r"\x1b\[[\d;?]*\w|[\r\n]", printed))) <= 80


@pytest.mark.parametrize("live", [False, True])
def test_steps_are_lines_and_on_a_terminal_a_bar_too(capsys, request, live):
    if live:
        request.getfixturevalue("terminal")
    with console.StepLog() as log:
        log(1, 20, "[red]Mia\x1b[2J")
        log(2, 20, "Ana")
    printed = capsys.readouterr().out
    lines = re.sub(r"\x1b\[[\d;?]*\w|\r", "", printed)
    assert re.search(r"^ {3}1/20 +\d s  \[red\]Mia\ufffd\[2J *$", lines, re.MULTILINE)
    assert re.search(r"^ {3}2/20 +\d s  Ana *$", lines, re.MULTILINE)
    assert ("━" in printed) == live == ("\x1b" in printed)
